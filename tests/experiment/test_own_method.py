"""A user's own training method: trained, evaluated, named in the table; what is refused; what its hash covers."""

import pytest

from qexp.config.validate import validate
from qexp.experiment.identity import training_identity

ROW = {
    "name": '"mixed"',
    "summary": '"Learned steps of weights, observed ranges of activations."',
    "code": "Mixed",
    "weights": '"symmetric"',
    "weight_choices": "()",
    "activations": '"affine"',
    "defines_activations": "False",
    "granularities": '("per_tensor", "per_channel")',
    "reads_rounding": "False",
    "why_unfolded": '""',
    "first_steps": '("paper",)',
    "begins_with_range": "True",
    "three_sigma": "False",
    "squashed_weights": "False",
    "overwrites_weights": "False",
    "mask": '"rounded"',
    "decay": '"scale_decay"',
}
CODE = """
from qexp.config.qat_methods import QatMethodInfo
from qexp.qat.methods import QatMethod
from qexp.qat.quantizers import LearnedStep, ObservedRange


class Mixed(QatMethod):
    def weight_quantizer(self, weight, spec, settings):
        channels = weight.shape[spec.axis] if spec.granularity == "per_channel" else None
        return LearnedStep(spec, settings.gradient_mask, weight.numel() // (channels or 1), channels)

    def activation_quantizer(self, info, spec, settings):
        return ObservedRange(spec, settings.gradient_mask, settings.momentum)


def method():
    return QatMethodInfo({row})
"""


@pytest.fixture
def own(tmp_path):
    """Writes the file with changed fields, and gives the overrides that name it."""

    def write(file="mine.py", **changes):
        row = {key: value for key, value in {**ROW, **changes}.items() if value is not None}
        text = ", ".join(f"{key}={value}" for key, value in row.items())
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(CODE.format(row=text))
        return ("qat=custom", f"qat.factory={tmp_path / file}:method")

    return write


def test_it_trains_is_evaluated_and_named(cli, tiny, own, tmp_path):
    done = cli(*tiny, *own(), "qat.init=none", "qat.batch_norm=folded", "bits=4")
    assert done.code == 0, done.err
    assert "W4A4 mixed rounded" in done.out
    tables = "".join(path.read_text() for path in (tmp_path / "results").rglob("*.csv"))
    assert "W4A4 mixed rounded" in tables and ",mixed," in tables


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": None}, "mask"),
        ({"decay": "None"}, "Its row says decay=None: allowed is scale_decay or alpha_decay"),
        ({"name": '"lsq"'}, "must be a name of its own"),
    ],
)
def test_a_wrong_row_is_one_error_before_anything_runs(cli, tiny, own, tmp_path, changes, message):
    done = cli(*tiny, *own(**changes), "bits=4")
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert done.err.count("qat.factory=") == 1 and not (tmp_path / "runs/trainings").exists()


def test_a_function_belongs_to_custom_and_custom_needs_one(cli, tiny):
    for words, message in ((("qat=custom",), "qat.factory=None"), (("qat=lsq", "qat.factory=a.py:b"), "belongs to qat=custom")):
        done = cli(*tiny, *words)
        assert done.code == 2 and message in done.err


def test_the_hash_covers_the_source_and_not_its_place(compose, tiny, own):
    def identity(overrides):
        return training_identity(validate(compose(*tiny, *overrides)))["qat"]

    first, moved = identity(own()), identity(own("elsewhere/mine.py"))
    assert first == moved and first["name"] == "mixed" and "factory" not in first
    edited = identity(own(begins_with_range="False"))
    assert {key for key in first if first[key] != edited[key]} == {"source"}
