"""The CIFAR ResNets against the numbers of their paper."""

import copy

import pytest
import torch
from torch import fx, nn

from qexp.models.cifar_resnet import CifarResNet, PadShortcut


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_depth(depth):
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in CifarResNet(depth).modules()) == depth


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 33, 47), (4, 96, 96)])
def test_takes_any_channels_and_size(shape):
    model = CifarResNet(20, num_classes=7, in_channels=shape[0]).eval()
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_shortcut_subsamples_and_pads_on_both_sides():
    x = torch.randn(2, 4, 7, 6)
    out = PadShortcut(4)(x)
    assert out.shape == (2, 8, 4, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == out[:, 6:].abs().sum() == 0


def test_initialization_is_kaiming():
    torch.manual_seed(0)
    weight = CifarResNet(20).layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_copies_and_traces():
    torch.manual_seed(0)
    model, x = CifarResNet(20).eval(), torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(fx.symbolic_trace(model)(x), expected)
