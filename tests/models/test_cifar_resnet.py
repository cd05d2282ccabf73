"""The CIFAR ResNets against the numbers of their paper."""

import copy

import pytest
import torch
from torch import fx, nn

from qexp.models.cifar_resnet import CifarResNet, PadShortcut


@pytest.mark.parametrize(
    ("depth", "num_parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_depth_and_number_of_parameters(depth, num_parameters):
    """Table 6 of the paper says 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    model = CifarResNet(depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == depth


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
