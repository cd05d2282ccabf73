"""Every correction does what its row says, or nothing at all."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CORRECTIONS, CorrectSettings
from qexp.experiment.build import _correct
from qexp.ptq.corrections import Copy


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
        nn.init.uniform_(norm.bias, -1.0, 3.0)
        norm.running_mean.uniform_(-1, 1)
    batch = Batch(torch.randn(8, 3, 6, 6), torch.zeros(8, dtype=torch.int64), torch.arange(8), 8)

    def make(settings, reads_images=True):
        return Copy(network.eval(), None, settings, 0, lambda: [batch])

    return make


def rounded(copy: Copy) -> Copy:
    import copy as copying

    copy.rounded = copying.deepcopy(copy.reference)
    with torch.no_grad():
        for name, parameter in copy.rounded.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                parameter.copy_(torch.round(parameter * 8) / 8)
                copy.specs = {**copy.specs, name: QuantSpec(scheme="symmetric_restricted", bits=4)}
    return copy


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_it_changes_what_its_row_says(name, work):
    import copy as copying

    row, copy = CORRECTIONS[name], work(asked(CORRECTIONS[name]))
    only = replace(copy.settings) if row.switch == "fold_bn" else copy.settings
    _correct(copy, "before")
    float_before, start = copy.reference, work(only).reference
    assert same(float_before, start) == (row.step == "after" and not row.needs_folding and name != "fold_bn")
    rounded(copy)
    untouched = copying.deepcopy(copy.rounded)
    _correct(copy, "after")
    assert copy.reference is float_before
    assert same(copy.quantized, untouched) == (row.step == "before")


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_row_with_the_wrong_step_is_found_when_it_runs(name, work):
    row = CORRECTIONS[name]
    copy = work(asked(row))
    if row.step == "before":
        rounded(copy)
    copy.reads_images = True
    with pytest.raises(AssertionError, match="as its row must say"):
        row.load()(copy)


@pytest.mark.parametrize("name", [name for name, row in CORRECTIONS.items() if row.needs_images])
def test_a_row_that_forgets_its_images_is_found_when_it_runs(name, work):
    copy = rounded(work(asked(CORRECTIONS[name])))
    with pytest.raises(AssertionError, match="says so in its row"):
        CORRECTIONS[name].load()(copy)
