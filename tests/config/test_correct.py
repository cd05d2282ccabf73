"""Which corrections go together."""

from dataclasses import asdict, fields

import pytest

from qexp.base.errors import UserError
from qexp.config.correct import CORRECTIONS, CorrectSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"equalize": True}, "correct.fold_bn=true"),
        ({"absorb_bias": True}, "correct.fold_bn=true"),
        ({"rescale_log10": 1.0}, "0 without correct.fold_bn=true"),
        ({"fold_bn": True, "rescale_log10": -1.0}, "correct.rescale_log10"),
        ({"adaround_lr": 0.0}, "correct.adaround_lr"),
        ({"adaround": True, "adaround_iterations": 0}, "correct.adaround_iterations=0: allowed is an integer of at least 1"),
        ({"adaround_warmup": 1.5}, "correct.adaround_warmup"),
        ({"adaround_beta_start": 1.5}, "correct.adaround_beta_end=2"),
        (
            {"adaround": True, "gptq": True, "qronos": True},
            "correct.adaround=true: allowed is false with correct.gptq and correct.qronos. Each of them chooses",
        ),
        ({"gptq": True, "gpfq": True}, "correct.gptq=true: allowed is false with correct.gpfq"),
        ({"gptq": True, "feedback_damping": -0.1}, "correct.feedback_damping"),
        ({"bias": "empiric"}, r"correct.bias=empiric: allowed is one of analytic, empirical, none. Did you mean empirical\?"),
    ],
)
def test_refused(values, message):
    with pytest.raises(UserError, match=message):
        CorrectSettings(**values)


def test_accepted_and_what_needs_images():
    assert not CorrectSettings(fold_bn=True, equalize=True, absorb_bias=True, bias="analytic").needs_images
    assert all(
        CorrectSettings(**values).needs_images for values in ({"bias": "empirical"}, {"reestimate_bn": True}, {"adaround": True})
    )


@pytest.mark.parametrize("name", CORRECTIONS)
def test_every_row_names_a_function_and_settings_that_exist(name):
    row, known = CORRECTIONS[name], asdict(CorrectSettings())
    assert callable(row.load()) and {row.switch, *row.settings} <= set(known)
    assert not row.is_on(CorrectSettings())


def test_the_order_of_labels_is_that_of_the_work():
    everything = CorrectSettings(
        fold_bn=True, rescale_log10=2.0, rescale_seed=3, equalize=True, absorb_bias=True, adaround=True, bias="empirical",
        reestimate_bn=True,
    )  # fmt: skip
    names = ("fold_bn", "rescale_2_seed3", "equalize", "absorb_bias", "adaround", "bias_empirical", "reestimate_bn")
    assert tuple(everything.words.values()) == names and not CorrectSettings().words
    steps = [row.step for row in CORRECTIONS.values()]
    assert steps == sorted(steps, reverse=True)  # all before rounding, then all after it


def test_settings_of_corrections_that_are_off_name_no_copy():
    alone = CorrectSettings(bias="analytic").identity
    assert alone == CorrectSettings(bias="analytic", adaround_iterations=7, rescale_seed=5).identity
    assert {"adaround", "bias", "fold_bn"} < set(alone) and not any(key.startswith(("adaround_", "rescale_")) for key in alone)
    assert CorrectSettings(adaround=True).identity != CorrectSettings(adaround=True, adaround_iterations=7).identity


def test_settings_of_several_corrections_name_a_copy_where_one_of_them_is_on():
    for method in ("gptq", "qronos"):
        plain, other = CorrectSettings(**{method: True}), CorrectSettings(**{method: True}, feedback_damping=0.1)
        assert plain.identity != other.identity and other.words == {method: f"{method} damping_0.1"}
        assert CorrectSettings(**{method: True}, feedback_act_order=True).words == {method: f"{method} act_order"}
    assert CorrectSettings(gpfq=True).identity == CorrectSettings(gpfq=True, feedback_damping=0.1).identity
    assert CorrectSettings(gpfq=True, feedback_damping=0.1).words == {"gpfq": "gpfq"}
    assert CorrectSettings(gptq=True).identity != CorrectSettings(qronos=True).identity
    old = CorrectSettings(adaround=True).identity
    assert not {"gptq", "gpfq", "qronos", "feedback_damping", "feedback_act_order"} & set(old)


def test_later_settings_belong_to_a_correction():
    """So that keys of before stay, whoever forgets to name one."""
    named = {key for row in CORRECTIONS.values() for key in row.settings}
    assert {item.name for item in fields(CorrectSettings) if "later" in item.metadata} <= named
