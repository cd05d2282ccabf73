"""What one layer after another of a network reads and gives, and how much of it is held."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from qexp.ptq import layer_inputs


class InPlace(nn.Module):
    """Writes into what its layers give, as torchvision's networks do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = nn.functional.relu(self.first(x), inplace=True)
        y = self.second(x)
        y += x
        y *= 2
        return self.third(y)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InPlace().eval()


def batches(sizes):
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(3)).split(list(sizes))


@pytest.mark.parametrize("room", [0, 30_000, 1 << 30])
@torch.no_grad()
def test_what_is_kept_of_the_layers_before_changes_nothing(room, monkeypatch):
    monkeypatch.setattr(layer_inputs, "KEPT_BYTES", room)
    model, images = network(), batches((16, 8))
    through = layer_inputs.LayerByLayer(model, images)
    for number, name in enumerate(("first", "second", "third")):
        expected: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(name, layer, x, y, expected=expected):
            expected.append((x.clone(), y.clone()))

        with layer_inputs.hooked({name: model.get_submodule(name)}, keep):
            for part in images:
                model(part)
        for pair, wanted in zip(through.at(name), expected, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(pair, wanted, strict=True))
        model.get_submodule(name).weight.mul_(0.5)  # a layer changes once it has been seen
        assert len(through.kept) == (number if room > 30_000 else 0 if room == 0 else min(number, 1))
    assert not any("forward" in vars(module) for module in model.modules())


def bytes_made():
    """Of the tensors that are alive and were made since `gc.freeze`; isinstance would wake lazy objects."""
    made = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in made)


@pytest.fixture
def frozen():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("room", [0, 10_000, 30_000, 60_000])
@torch.no_grad()
def test_no_more_is_held_than_there_is_room_for(room, monkeypatch, frozen):
    """Two layers of 24 576 bytes each, in 24 batches; beside them there are inputs and outputs of one batch."""
    monkeypatch.setattr(layer_inputs, "KEPT_BYTES", room)
    model, images = network(), batches([1] * 24)
    through, most = layer_inputs.LayerByLayer(model, images), 0
    given = bytes_made()
    for name in ("first", "second", "third"):
        for _ in through.at(name):
            most = max(most, bytes_made() - given)
    kept = min(room // 24_576, 2) * 24_576
    assert kept <= most <= room + 4 * 1024
    assert sorted(through.kept) == {0: [], 1: ["second"], 2: ["first", "second"]}[kept // 24_576]
