"""Codes of fewer bits than their type stay on their grid, also of images beyond those that it was calibrated on."""

import pytest
import torch
from torch import nn

from qexp.base.types import QParams
from qexp.deploy.activation_codes import simulated_codes
from qexp.deploy.tflite.export import export_tflite
from qexp.deploy.tflite.node import Target
from qexp.deploy.tflite.run import TfliteSession
from qexp.deploy.tflite.writer import INT8, CodeGrid

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'qexp[deploy]'")


def images(n, scale, seed):
    return scale * torch.randn(n, 3, 9, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.alone
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize("clamp", [nn.ReLU, nn.ReLU6, nn.Hardtanh, lambda: nn.Hardtanh(-0.5, 2.0)])
def test_brighter_images_saturate_as_simulated(quantized, tmp_path, clamp, bits):
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    network = nn.Sequential(first, clamp(), second, clamp(), nn.Flatten(), nn.Linear(8 * 72, 5))
    case = quantized(network, images(6, 0.7, 1), act_bits=bits)
    brighter = images(16, 5.0, 2)
    codes, logits = simulated_codes(case.network, brighter)
    largest = float(logits.abs().max())
    exported = export_tflite(case.network, case.images[:1], case.weights, tmp_path / "net.tflite", largest_logit=largest)
    session = TfliteSession(exported.path, points=tuple(codes))
    _, *shown = session.run(brighter)
    for place, values, expected in zip(session.places, shown, codes.values(), strict=True):
        own = values - place[1]
        assert (own.min(), own.max()) == (expected.min(), expected.max())


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0.0, None, (True, False)),
        (0.0, 6.0, (True, False)),
        (-1.0, 1.0, (False, True)),
        (-0.5, 3.5, (True, True)),
        (-0.75, 3.75, (False, False)),
        (None, None, (False, False)),
    ],
)
def test_a_clamp_keeps_the_ends_that_it_does_not_pass(low, high, kept):
    """A step of 0.5, values from -0.5 to 3.5."""
    grid = CodeGrid(QParams(torch.tensor(0.5), torch.tensor(-127.0), -128, -120), INT8)
    assert grid.within(low, high) == kept


@pytest.mark.parametrize(("scale", "fused"), [(2 / 3, None), (0.5, 2), (0.4, None), (0.3, 2)])
def test_a_clamp_between_two_codes_is_not_left_to_the_operator(scale, fused):
    """Of -1 and 1: halfway between two codes at steps of 2/3 and 0.4."""
    grid = CodeGrid(QParams(torch.tensor(scale), torch.tensor(-1.0), -8, 7), INT8)
    assert Target(grid, (-1.0, 1.0)).fused == fused
