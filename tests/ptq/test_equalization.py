"""Cross-layer equalization and bias absorption: preserved functions, and the collapse that they undo."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qexp.base.types import QuantSpec
from qexp.nn.connectivity import ChannelClip
from qexp.nn.fold import ChannelStatistics, fold_batch_norm
from qexp.nn.graph import trace
from qexp.ptq.bias_absorption import absorb_high_biases
from qexp.ptq.equalization import equalize, rescale_channels
from qexp.quant.schemes import quantize_

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def depthwise(activation=nn.ReLU):
    """Pointwise, depthwise, pointwise, folded, with all biases."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 1),
        activation(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        activation(),
        nn.Conv2d(16, 8, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def sqnr_db(actual, expected):
    return float(10 * torch.log10(expected.square().sum() / (actual - expected).square().sum()))


def quantized(model, bits=8):
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            quantize_(module.weight.data, module.weight.data, QuantSpec(scheme="symmetric_restricted", bits=bits))
    return copied


@torch.no_grad()
def rescaled(model):
    """The same function with the first layer's channels 10^U(-2, 2) times as large, and the second's inputs as much smaller."""
    copied = copy.deepcopy(model)
    factor = 10 ** (4 * torch.rand(16, generator=torch.Generator().manual_seed(4)) - 2)
    copied[0].weight.mul_(factor.reshape(-1, 1, 1, 1))
    copied[0].bias.mul_(factor)
    copied[2].weight.div_(factor.reshape(-1, 1, 1, 1))
    return copied


@torch.no_grad()
def test_per_tensor_int8_collapses_and_equalization_brings_it_back():
    model = seeded(depthwise)
    expected = model(IMAGES)
    bad = rescaled(model)
    assert sqnr_db(bad(IMAGES), expected) > 100  # the same function
    before, collapsed = sqnr_db(quantized(model)(IMAGES), expected), sqnr_db(quantized(bad)(IMAGES), expected)
    restored = equalize(bad).model
    assert before > 30 and collapsed < before - 15
    assert sqnr_db(quantized(restored)(IMAGES), expected) > before - 1


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.PReLU, nn.Identity, lambda: nn.PReLU(16)])
@torch.no_grad()
def test_the_function_stays_and_ranges_become_equal(activation):
    model = seeded(lambda: depthwise(activation))
    model[0].weight.mul_(20)  # so that a cap of 6 cuts
    equalized = equalize(model)
    assert torch.allclose(equalized.model(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    first, middle, last = (equalized.model[index].weight.abs() for index in (0, 2, 4))
    ranges = torch.stack([first.amax((1, 2, 3)), middle.amax((1, 2, 3)), last.amax((0, 2, 3))])
    assert torch.allclose(ranges, ranges[:1].expand_as(ranges), rtol=5e-3)
    assert [(pair.first, pair.second) for pair in equalized.pairs] == [("0", "2"), ("2", "4"), ("4", "8")]
    traced = trace(equalized.model, IMAGES[:1]).build()
    assert torch.equal(traced(IMAGES), equalized.model(IMAGES))
    assert isinstance(equalized.model[1], ChannelClip) == (activation is nn.ReLU6)
    assert torch.allclose(equalize(equalized.model).model(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)  # caps again


@torch.no_grad()
def test_dead_channels_are_left_alone():
    model = seeded(depthwise)
    model[0].weight[3] = 0
    model[2].weight[5] = 0
    equalized = equalize(model)
    pair = equalized.pairs[0]
    assert pair.dead == 2 and pair.scale[3] == pair.scale[5] == 1
    assert torch.allclose(equalized.model(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_what_is_not_done_is_said():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.b(nn.functional.relu6(self.a(x)))

    assert "no module of its own" in equalize(Functional().eval()).notes[0]
    assert "did not converge" in equalize(seeded(depthwise), max_iterations=1).notes[0]


@torch.no_grad()
def test_statistics_follow_the_scale():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval())
    folded = fold_batch_norm(net)
    equalized = equalize(folded.model, folded.statistics)
    scale = equalized.pairs[0].scale
    assert torch.equal(equalized.statistics["0"].std, 1 / scale) and not torch.equal(scale, torch.ones(4, dtype=scale.dtype))


def absorbable(padding):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=padding)).eval())
    mean, std = torch.tensor([5.0, 4.0, 0.5, -2.0]), torch.tensor([1.0, 0.5, 1.0, 0.1])
    with torch.no_grad():  # outputs with these statistics, for inputs of unit variance
        net[0].weight.mul_(std.reshape(-1, 1, 1, 1) / net[0].weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
        net[0].bias.copy_(mean)
    return net, {"0": ChannelStatistics(mean.double(), std.double())}


@torch.no_grad()
def test_absorption_by_its_formula_and_on_outputs():
    net, statistics = absorbable(padding=0)
    absorbed = absorb_high_biases(net, statistics)
    shift = torch.tensor([2.0, 2.5, 0.0, 0.0])
    assert torch.equal(absorbed.pairs[0].shift.float(), shift)
    assert torch.allclose(absorbed.model[0].bias, net[0].bias - shift)
    expected_bias = net[2].bias + (net[2].weight.sum((2, 3)) * shift).sum(1)
    assert torch.allclose(absorbed.model[2].bias, expected_bias, atol=1e-6)
    assert torch.equal(absorbed.statistics["0"].mean.float(), torch.tensor([3.0, 1.5, 0.5, -2.0]))
    assert sqnr_db(absorbed.model(IMAGES), net(IMAGES)) > 45


@torch.no_grad()
def test_absorption_at_padded_borders():
    net, statistics = absorbable(padding=1)
    absorbed = absorb_high_biases(net, statistics)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert sqnr_db(absorbed.model(IMAGES)[inner], net(IMAGES)[inner]) > 45 > sqnr_db(absorbed.model(IMAGES), net(IMAGES))
    left = absorb_high_biases(net, statistics, padded=False)
    assert not left.pairs and "pads" in left.notes[0] and torch.equal(left.model(IMAGES), net(IMAGES))
    assert "no batch norm" in absorb_high_biases(net, {}).notes[0]


@torch.no_grad()
def test_absorption_lowers_the_cap_too():
    net, statistics = absorbable(padding=0)
    net[1] = ChannelClip(torch.tensor([6.0, 4.0, 1.0, 1.0]).reshape(-1, 1, 1)).eval()
    absorbed = absorb_high_biases(net, statistics)
    assert torch.equal(absorbed.model[1].cap.flatten(), torch.tensor([4.0, 1.5, 1.0, 1.0]))
    assert sqnr_db(absorbed.model(IMAGES), net(IMAGES)) > 40


@torch.no_grad()
def test_rescaled_channels_keep_the_function_and_equalization_undoes_them():
    folded = seeded(depthwise)
    statistics = {"0": ChannelStatistics(torch.ones(16, dtype=torch.float64), torch.ones(16, dtype=torch.float64))}
    rescaled = rescale_channels(folded, statistics, log10=2, seed=1)
    factor = rescaled.model[0].bias / folded[0].bias
    assert 1e-2 <= factor.min() < 0.2 and 20 < factor.max() <= 1e2
    torch.testing.assert_close(rescaled.statistics["0"].std, factor.double(), rtol=1e-5, atol=0)
    assert sqnr_db(rescaled.model(IMAGES), folded(IMAGES)) > 100
    assert sqnr_db(quantized(rescaled.model)(IMAGES), folded(IMAGES)) < sqnr_db(quantized(folded)(IMAGES), folded(IMAGES)) - 10
    for name, values in equalize(rescaled.model).model.state_dict().items():
        torch.testing.assert_close(values, equalize(folded).model.state_dict()[name], rtol=2e-2, atol=1e-4)


def test_the_factors_are_a_function_of_the_seed():
    folded = seeded(depthwise)
    first, again, other = (rescale_channels(folded, log10=1, seed=seed).model[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(rescale_channels(folded, log10=0).model[0].weight, folded[0].weight)
