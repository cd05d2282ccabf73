"""Every correction does what its row says, or nothing at all."""

import copy

import pytest
import torch
from torch import nn

from qexp.base.text import Note
from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CORRECTIONS, CorrectSettings, sentences
from qexp.config.outcome import Outcome
from qexp.experiment.build import _correct
from qexp.ptq.corrections import Copy, _error_feedback


def asked(row) -> CorrectSettings:
    """Settings under which a correction is on, with what it needs."""
    value = {bool: True, float: 1.0, str: row.choice}[type(getattr(CorrectSettings(), row.switch))]
    return CorrectSettings(**({"fold_bn": True} if row.needs_folding else {}) | {row.switch: value, "adaround_iterations": 5})


@pytest.fixture
def work():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    network = nn.Sequential(*layers)
    for norm in (network[1], network[4]):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.uniform_(norm.bias, -1.0, 9.0)
        norm.running_mean.uniform_(-1, 1)
    batch = Batch(torch.randn(8, 3, 6, 6), torch.zeros(8, dtype=torch.int64), torch.arange(8), 8)

    def make(settings):
        return Copy(network.eval(), None, settings, 0, batch.images[:1], lambda: [batch])

    return make


def rounded(work: Copy) -> Copy:
    work.rounded = copy.deepcopy(work.reference)
    with torch.no_grad():
        for name, parameter in work.rounded.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                parameter.copy_(torch.round(parameter * 8) / 8)
                work.specs = {**work.specs, name: QuantSpec(scheme="symmetric_restricted", bits=4)}
    return work


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_it_changes_the_network_that_its_row_says(name, work):
    row, making = CORRECTIONS[name], work(asked(CORRECTIONS[name]))
    start = making.reference
    _correct(making, "before")
    reference = making.reference
    assert same(reference, start) == (row.step == "after")
    untouched = copy.deepcopy(rounded(making).quantized)
    _correct(making, "after")
    assert making.reference is reference
    assert list(making.outcomes) == list(asked(row).words) and making.outcomes[name].done
    assert same(making.quantized, untouched) == (row.step == "before")


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_row_with_the_wrong_step_is_found_when_it_runs(name, work):
    row = CORRECTIONS[name]
    making = work(asked(row))
    if row.step == "before":
        rounded(making)
    making.reads_images = True
    with pytest.raises(AssertionError, match="as its row must say"):
        row.load()(making)


@pytest.mark.parametrize("name", [name for name, row in CORRECTIONS.items() if row.needs_images])
def test_a_row_that_forgets_its_images_is_found_when_it_runs(name, work):
    making = rounded(work(asked(CORRECTIONS[name])))
    with pytest.raises(AssertionError, match="says so in its row"):
        CORRECTIONS[name].load()(making)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_what_had_nothing_to_do_says_so(name):
    """One layer that is not rounded, behind the images and before no other; no batch norm."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    batch = Batch(torch.randn(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2), 2)
    making = Copy(network, None, asked(CORRECTIONS[name]), 0, batch.images[:1], lambda: [batch])
    _correct(making, "before")
    making.rounded = copy.deepcopy(making.reference)
    _correct(making, "after")
    assert same(making.quantized, network) and not making.outcomes[name].done
    (alarm,) = [text for text in sentences(making.outcomes, alarming=True) if text.startswith(name)]
    assert " 0 of " in alarm and ": " in alarm


def test_a_row_that_does_not_return_what_it_did_is_found_when_it_runs(work, monkeypatch):
    monkeypatch.setattr("qexp.ptq.corrections.fold_bn", lambda copy: None)
    with pytest.raises(AssertionError, match="returns what it did"):
        _correct(work(CorrectSettings(fold_bn=True)), "before")


def test_alarms_are_of_what_could_not_be_done_where_it_was_to_be_done_everywhere():
    part = Outcome.of(2, [Note(name, "its input is a sum") for name in "abcd"], [Note("e", "it was right")])
    told = {True: [], False: []}
    for alarming in told:
        told[alarming] = sentences({"bias_empirical": part, "bias_analytic": part, "fold_bn": Outcome(done=3)}, alarming=alarming)
    reasons = "its input is a sum (a; b; c; ... 4 in all); it was right (e)"
    assert told == {
        True: [f"bias_empirical corrected 2 of 7 layers: {reasons}"], False: [f"bias_analytic corrected 2 of 7 layers: {reasons}"]
    }  # fmt: skip
    (none,) = sentences({"reestimate_bn": Outcome(done=0)}, alarming=True)
    assert none == "reestimate_bn re-estimated 0 of 0 batch norms: there are none"
    (only,) = sentences({"adaround": Outcome.of(1, [], [Note("a", "nearest")])}, alarming=False)
    assert only == "adaround chose the rounding of 1 of 2 weights: nearest (a)"


def test_a_damping_that_was_raised_is_a_note(work):
    """Of eight images, the linear layer has fewer than inputs, so that these follow from one another."""
    for damping, told in ((0.0, True), (0.5, False)):
        made = rounded(work(CorrectSettings(gptq=True, feedback_damping=damping)))
        made.reads_images = True
        _error_feedback(made, "gptq")
        assert any("correct.feedback_damping=0 was raised" in note for note in made.notes) == told
