"""Activations in floating-point formats and blocks: the values of `quantize_`, blocks along channels, ranges where any are."""

from __future__ import annotations

import pytest
import torch

from qexp.base.types import ActivationInfo, ActivationRow, Plan, QuantSpec
from qexp.config.quant import ActivationQuantSettings
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import fake_quants, insert
from qexp.nn.fake_quantize import FloatFakeQuantize
from qexp.nn.graph import trace
from qexp.policy.activations import activation_spec
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_

BLOCKED = SCHEMES.names_where(lambda row: row.block is not None)
INFO = ActivationInfo(name="point", shape=(40, 5, 3), channel_axis=1)


def spec(scheme: str, **settings) -> QuantSpec:
    asked = ActivationQuantSettings(scheme=scheme, **settings)
    return activation_spec(INFO, asked, asked.bits or 8)


def values(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x * torch.linspace(0.01, 3, shape[1]).reshape(-1, *[1] * (len(shape) - 2))


@pytest.mark.parametrize("shape", [(2, 40, 5, 3), (3, 40)])
@pytest.mark.parametrize("scheme", BLOCKED)
def test_blocks_are_of_channels_at_each_position(scheme, shape):
    """As the rows of a matrix whose columns are the channels, which is how a weight's blocks are cut."""
    x = values(*shape)
    chosen = spec(scheme, **({"bits": 4, "block_size": 24} if scheme == "bfp" else {}))
    assert chosen.dynamic and chosen.axis == 1
    matrix = x.movedim(1, -1).reshape(-1, 40).contiguous()
    alone = QuantSpec(scheme=scheme, bits=chosen.bits, granularity="per_block", block_size=chosen.block_size)
    expected = quantize_(torch.empty_like(matrix), matrix, alone)
    expected = expected.reshape(x.movedim(1, -1).shape).movedim(-1, 1)
    module = FloatFakeQuantize("point", chosen)
    for given in (x, x.contiguous(memory_format=torch.channels_last)) if x.dim() == 4 else (x,):
        kept = given.clone()
        ours = module(given)
        assert torch.equal(ours, expected) and torch.equal(given, kept) and ours.stride() == given.stride()
        assert module(kept, overwrite=True) is kept and torch.equal(kept, expected)
    zeros = torch.zeros_like(x)
    assert torch.equal(module(zeros), zeros)
    x[0, 0] = torch.nan
    assert module(x).isnan().any()  # which is seen further on


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", [None, "e5m2", "e2m1"])
def test_a_minifloat_covers_its_range_or_its_batch(name, granularity):
    x = values(2, 40, 5, 3)
    dims = (0, 1, 2, 3) if granularity == "per_tensor" else (0, 2, 3)
    settings = {"format": name, "granularity": granularity} | ({} if name else {"bits": 8})
    weight_spec = QuantSpec(**{**vars(spec("minifloat", **settings))})
    expected = quantize_(torch.empty_like(x), x, weight_spec)
    static = FloatFakeQuantize("point", weight_spec, 40)
    with pytest.raises(RuntimeError, match="was not calibrated"):
        static(x)
    static.set_range(x.amin(dims), x.amax(dims))
    dynamic = FloatFakeQuantize("point", spec("minifloat", dynamic=True, **settings), 40)
    assert torch.equal(static(x), expected) and torch.equal(dynamic(x), expected)
    static.set_range(x.amin(dims) / 4, x.amax(dims) / 4)
    largest = torch.maximum(x.amin(dims).abs(), x.amax(dims).abs())
    torch.testing.assert_close(static(x).abs().amax(dims), largest / 4)
    assert static.decode(torch.tensor([static.quant_min, static.quant_max])).shape == (
        40 if granularity == "per_channel" else 1,
        2,
    )
    with pytest.raises(RuntimeError, match="no scale and zero point"):
        _ = static.qparams


def test_unscaled_activations_need_no_range():
    x = values(2, 40, 5, 3) * 1e4
    module = FloatFakeQuantize("point", spec("minifloat", format="e4m3fn", scaled=False))
    assert torch.equal(module(x), x.to(torch.float8_e4m3fn).float())


def test_the_control_rounds_nothing_and_clamps():
    x = values(2, 40, 5, 3)
    chosen = QuantSpec(**{**vars(spec("mxfp4")), "mode": "float"})
    control = FloatFakeQuantize("point", chosen)(x)
    assert len(control.unique()) > 800 and ((control - x).abs() <= 0.26 * x.abs()).all()
    with pytest.raises(RuntimeError, match="no gradient"):
        FloatFakeQuantize("point", chosen)(x.requires_grad_())


def test_a_network_computes_with_its_activations_in_blocks():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 40, 3), torch.nn.ReLU(), torch.nn.Conv2d(40, 4, 1)).eval()
    x = values(2, 3, 8, 8)
    traced = trace(network, x)
    asked = ActivationQuantSettings(scheme="mxfp4")
    points = activations(traced, layers_only=True)
    rows = tuple(ActivationRow(info, activation_spec(info, asked, 4), "activations") for info in points)
    quantized = insert(traced, Plan((), mode="int", activations=rows)).eval()
    assert [type(module) for module in fake_quants(quantized).values()] == [FloatFakeQuantize] * 2
    with torch.no_grad():
        first, last = (FloatFakeQuantize("alone", row.spec) for row in rows)
        hidden = torch.relu(network[0](first(x)))
        assert torch.equal(quantized(x), network[2](last(hidden)))
