"""The affine function against torch's and onnxruntime's own, and the properties of a quantizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.base.errors import UserError
from qexp.base.types import QParams, QuantSpec
from qexp.quant.affine import dequantize_affine, fake_quantize_affine, quantize_affine
from qexp.quant.qparams import choose_qparams
from qexp.quant.ranges import min_max
from qexp.quant.rounding import ROUNDINGS
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_

DETERMINISTIC = [name for name in ROUNDINGS if name != "stochastic"]
SCALES = (0.1, 0.0371, 1.0, 0.5, 1e-4, 3.7e-3)


def hard_values(scale: float) -> torch.Tensor:
    """Random values, both sides of the clamp, and every tie: (k + 1/2) scale in float32, as close as it comes."""
    ties = (torch.arange(-300, 300) + 0.5) * scale
    random = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * scale * 90
    return torch.cat([ties, random, torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-40])])


def per_tensor(scale: float, zero_point: int, quant_min: int = -128, quant_max: int = 127) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(float(zero_point)), quant_min, quant_max)


@pytest.mark.parametrize("zero_point", [0, 3, -128, 127])
@pytest.mark.parametrize("scale", SCALES)
def test_reciprocal_is_torch_per_tensor(scale, zero_point):
    x = hard_values(scale)
    x = x[x.abs() < 1e9]  # torch casts to int64 before it clamps
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)
    qparams = per_tensor(scale, zero_point)
    assert torch.equal(fake_quantize_affine(x, qparams), expected)
    assert torch.equal(dequantize_affine(quantize_affine(x, qparams), qparams), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_reciprocal_is_torch_per_channel(axis):
    generator = torch.Generator().manual_seed(axis)
    x = torch.randn(6, 5, 7, generator=generator)
    scale = torch.rand(x.shape[axis], generator=generator) * 0.1 + 0.01
    zero_point = torch.randint(-8, 8, scale.shape, generator=generator, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, -8, 7)
    assert torch.equal(fake_quantize_affine(x, QParams(scale, zero_point.float(), -8, 7, axis)), expected)


@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.affine_activations and row.ends != "upper"))
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantize_is_torchs_fake_quantize(scheme, bits, axis):
    x = torch.randn(12, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    granularity = {"granularity": "per_tensor"} if axis is None else {"granularity": "per_channel", "axis": axis}
    quantized = quantize_(torch.empty_like(x), x, QuantSpec(scheme=scheme, bits=bits, **granularity))
    qparams = choose_qparams(*min_max(x, axis), bits, scheme=scheme)
    low, high, zero_point = qparams.quant_min, qparams.quant_max, qparams.zero_point.int()
    if axis is None:
        expected = torch.fake_quantize_per_tensor_affine(x, float(qparams.scale), int(zero_point), low, high)
    else:
        expected = torch.fake_quantize_per_channel_affine(x, qparams.scale, zero_point, axis, low, high)
    assert torch.equal(quantized, expected)


def test_the_two_arithmetics_differ_at_ties_only():
    scale = 0.0371
    qparams, ties = per_tensor(scale, 0, -32768, 32767), (torch.arange(-5000, 5000) + 0.5) * scale
    random = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    for x, some in ((ties, True), (random, False)):
        difference = quantize_affine(x, qparams) - quantize_affine(x, qparams, arithmetic="divide")
        assert bool(difference.any()) == some and difference.abs().max() <= 1


def test_rounding_comes_before_the_zero_point():
    x, qparams = torch.tensor([0.5, 1.5, 2.5]), per_tensor(1.0, 1)
    assert quantize_affine(x, qparams).tolist() == [1, 3, 3]
    assert quantize_affine(x, qparams, rounding="half_up").tolist() == [2, 3, 4]
    assert quantize_affine(x, qparams, rounding=None).tolist() == [1.5, 2.5, 3.5]


def test_out_may_be_the_argument():
    x, qparams = hard_values(0.1), per_tensor(0.1, 5)
    for function in (quantize_affine, fake_quantize_affine):
        mine = x.clone()
        assert function(mine, qparams, out=mine) is mine
        assert torch.equal(mine, function(x, qparams))
    codes = quantize_affine(x, qparams)
    expected = dequantize_affine(codes, qparams)
    assert dequantize_affine(codes, qparams, out=codes) is codes and torch.equal(codes, expected)


@pytest.mark.parametrize(("argument", "value"), [("rounding", "nearest"), ("arithmetic", "multiply")])
def test_unknown_names_list_the_choices(argument, value):
    with pytest.raises(UserError, match=r"one of .*(half_even|reciprocal)"):
        fake_quantize_affine(torch.ones(2), per_tensor(1.0, 0), **{argument: value})


VALUES = st.lists(st.floats(-1000, 1000, width=32), min_size=2, max_size=50).filter(lambda v: max(map(abs, v)) > 1e-3)


@given(values=VALUES, bits=st.integers(2, 12), symmetric=st.booleans(), rounding=st.sampled_from(DETERMINISTIC))
def test_properties(values, bits, symmetric, rounding):
    x = torch.tensor(values).sort().values
    qparams = choose_qparams(x.min(), x.max(), bits, scheme="symmetric_restricted" if symmetric else "affine")
    codes = quantize_affine(x, qparams, rounding=rounding)
    fake = fake_quantize_affine(x, qparams, rounding=rounding)
    assert torch.equal(codes, codes.round()) and codes.min() >= qparams.quant_min and codes.max() <= qparams.quant_max
    assert (codes.diff() >= 0).all(), "monotone"
    assert torch.equal(dequantize_affine(codes, qparams), fake)
    assert len(fake.unique()) <= 2**bits
    assert fake_quantize_affine(torch.zeros(3), qparams, rounding=rounding).eq(0).all(), "zero is exact"
    slack = 1.0001 * (0.5 if rounding.startswith("half") else 1.0) + (0 if symmetric else 0.5 * (rounding not in ("half_even",)))
    assert ((fake - x).abs() <= slack * qparams.scale).all()


@given(values=VALUES, bits=st.integers(2, 12), symmetric=st.booleans())
def test_idempotent_at_fixed_parameters(values, bits, symmetric):
    x = torch.tensor(values)
    qparams = choose_qparams(x.min(), x.max(), bits, scheme="symmetric_restricted" if symmetric else "affine")
    once = fake_quantize_affine(x, qparams)
    assert torch.equal(fake_quantize_affine(once, qparams), once)


@given(values=VALUES, bits=st.integers(2, 12), symmetric=st.booleans(), power=st.integers(-20, 20))
def test_scale_equivariant_in_powers_of_two(values, bits, symmetric, power):
    x, factor = torch.tensor(values), 2.0**power
    small, large = (
        fake_quantize_affine(
            tensor, choose_qparams(tensor.min(), tensor.max(), bits, scheme="symmetric_restricted" if symmetric else "affine")
        )
        for tensor in (x, x * factor)
    )
    assert torch.equal(small * factor, large)


@given(values=VALUES, bits=st.integers(2, 12))
def test_symmetric_is_odd(values, bits):
    x = torch.tensor(values)
    qparams = choose_qparams(x.min(), x.max(), bits, scheme="symmetric_restricted")
    assert torch.equal(fake_quantize_affine(-x, qparams), -fake_quantize_affine(x, qparams))
