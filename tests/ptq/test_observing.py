"""The scope: hooks within, the network as it was after."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.config.calibrate import CalibrateSettings
from qexp.nn.graph import evaluating
from qexp.ptq.observers import EndsObserver
from qexp.ptq.observing import observing


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3))


def observers(*names: str) -> dict[str, EndsObserver]:
    return {name: EndsObserver(CalibrateSettings()) for name in names}


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_values_are_seen_and_nothing_is_left():
    model, images = network().eval(), torch.rand(2, 1, 4, 4)
    before, plain = copy.deepcopy(model.state_dict()), model(images)
    with observing(model, observers("0", "2", "")) as stats:
        out = model(images)
        assert num_hooks(model) == 3
    assert num_hooks(model) == 0 and torch.equal(out, plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    conv = model[0](images)
    assert stats["0"].extremes() == (conv.min(), conv.max())
    assert stats["2"].extremes()[0] == 0
    assert stats[""].extremes() == (plain.min(), plain.max())
    model(images * 9)
    assert stats["0"].extremes() == (conv.min(), conv.max())


def test_inputs():
    model, images = network().eval(), torch.rand(2, 1, 4, 4)
    with observing(model, observers("0", "4"), side="input") as stats:
        model(images)
    assert stats["0"].extremes() == (images.min(), images.max())
    assert stats["4"].extremes()[0] == 0


def test_hooks_go_after_an_error_and_others_stay():
    model = network().eval()
    own = model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError), observing(model, observers("0", "4")):
        model(torch.rand(2, 3, 4, 4))
    assert num_hooks(model) == 1
    with pytest.raises(UserError, match="place=5.*one of"), observing(model, observers("0", "5")):
        pass
    assert num_hooks(model) == 1
    own.remove()


def test_what_passes_has_to_be_a_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    model = Whole()
    with pytest.raises(UserError, match="tuple at pair"), observing(model, observers("pair")):
        model(torch.ones(2))
    assert num_hooks(model) == 0


def test_eval_mode_is_taken_back_module_by_module():
    model = network().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes
