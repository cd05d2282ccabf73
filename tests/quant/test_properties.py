"""What every quantizer should do, by hypothesis: idempotence, order, symmetry, scaling, zero, error bounds, number of levels.

And how much each costs: the signal-to-noise ratio of uniform and of Gaussian inputs against closed forms.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.quant.encoding import encode
from qexp.quant.scheme_table import SCHEMES, represents_zero
from qexp.quant.schemes import decode_rows, encode_rows, fit, quantize_

HALF = ("half_even", "half_up", "half_away")
UNIFORM = ("linear", "affine", "symmetric", "symmetric_restricted", "scale_factor", "pow2_scale")
ODD = ("symmetric_restricted", "pow2_scale", "log2", "apot", "quadratic", "ternary")
# tanh is not linear, and a fixed-point format knows no scale
SCALING = [name for name in SCHEMES if name not in ("linear_raw", "dorefa", "fixed_point")]

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=40).filter(
    lambda v: max(v) > 1e-3 and max(v) - min(v) > 1e-3
)


def widths(scheme: str) -> st.SearchStrategy[int]:
    return st.integers(SCHEMES[scheme].min_bits, min(10, SCHEMES[scheme].max_bits))


def quantized(x: Tensor, spec: QuantSpec, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    return quantize_(torch.empty_like(x), x, spec, limits)


def again(x: Tensor, spec: QuantSpec, source: Tensor) -> Tensor:
    """x quantized with the parameters of `source`."""
    fitted = fit(source, spec)
    return fitted.layout.fold(decode_rows(encode_rows(x, spec, fitted), spec, fitted))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in ("linear_raw", "dorefa", "ternary")])
@settings(max_examples=40)
@given(data=st.data(), values=VALUES)
def test_idempotent_at_fixed_parameters(scheme, data, values):
    """dorefa is not: it leaves the scale of what it quantizes. Nor ternary, whose scale may lie below its threshold."""
    x = torch.tensor(values)
    spec = QuantSpec(scheme=scheme, bits=data.draw(widths(scheme)))
    once = quantized(x, spec)
    twice = again(once, spec, x)
    if scheme == "linear":  # step and offset are not the map's own floats
        assert (twice - once).abs().max() <= 4e-7 * max(map(abs, values))
    else:
        assert torch.equal(twice, once)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=40)
@given(data=st.data(), values=VALUES, axis=st.sampled_from([None, 0]))
def test_monotone(scheme, data, values, axis):
    x = torch.tensor(values).sort().values[None]
    granularity = {"granularity": "per_tensor" if axis is None else "per_channel"}
    spec = QuantSpec(scheme=scheme, bits=data.draw(widths(scheme)), **granularity)
    assert (quantized(x, spec).diff() >= 0).all()
    assert (encode(x, spec).codes.diff() >= 0).all()


@pytest.mark.parametrize("scheme", ODD)
@settings(max_examples=40)
@given(data=st.data(), values=VALUES)
def test_odd(scheme, data, values):
    x = torch.tensor(values)
    spec = QuantSpec(scheme=scheme, bits=data.draw(widths(scheme)))
    assert torch.equal(quantized(-x, spec), -quantized(x, spec))


@pytest.mark.parametrize("scheme", SCALING)
@settings(max_examples=40)
@given(data=st.data(), values=VALUES, power=st.integers(-30, 30))
def test_scales_with_powers_of_two(scheme, data, values, power):
    assume(min(abs(v) for v in values if v) > 1e-20)
    x, factor = torch.tensor(values), 2.0**power
    spec = QuantSpec(scheme=scheme, bits=data.draw(widths(scheme)))
    assert torch.equal(quantized(x * factor, spec), quantized(x, spec) * factor)


@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.zero == "always"))
@settings(max_examples=30)
@given(data=st.data(), values=VALUES, shift=st.sampled_from([0.0, 200.0]))
def test_zero_stays_zero(scheme, data, values, shift):
    """Also where no element is negative."""
    x = torch.cat([torch.zeros(1), torch.tensor(values) + shift])
    spec = QuantSpec(scheme=scheme, bits=data.draw(widths(scheme)))
    assert represents_zero(spec) and quantized(x, spec)[0] == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=40)
@given(data=st.data(), values=VALUES)
def test_level_count_and_permutation(scheme, data, values):
    x = torch.tensor(values)
    spec = QuantSpec(scheme=scheme, bits=data.draw(widths(scheme)))
    copy = quantized(x, spec)
    assert len(copy.unique()) <= 2**spec.bits and torch.isfinite(copy).all()
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    tolerance = 1e-5 if scheme in ("binary", "ternary", "dorefa") else 0  # sums in another order, vectorized tanh
    assert (quantized(x[order], spec) - copy[order]).abs().max() <= tolerance * copy.abs().max()


def step_of(x: Tensor, spec: QuantSpec) -> Tensor:
    params = fit(x, spec).params
    return 1 / params["factor"] if spec.scheme == "scale_factor" else params["scale"]


@pytest.mark.parametrize("rounding", [*HALF, "floor", "ceil", "trunc", "stochastic"])
@pytest.mark.parametrize("scheme", [*UNIFORM, "fixed_point"])
@settings(max_examples=20)
@given(data=st.data(), values=VALUES)
def test_error_bounds_inside_the_grid(scheme, rounding, data, values):
    """At most s/2 to the nearest; floor in (-s, 0], ceil in [0, s), trunc and stochastic below s either way."""
    x = torch.tensor(values)
    spec = QuantSpec(scheme=scheme, bits=data.draw(st.integers(2, 10)), rounding=rounding)
    step, copy = step_of(x, spec).double(), quantized(x, spec)
    slack = 1e-5 + x.abs().max() / step * 2e-7  # of a step: the arithmetic is float32
    control = quantized(x, QuantSpec(scheme=scheme, bits=spec.bits, mode="float"))
    inside = (control - x).abs() <= slack * step
    error = ((copy.double() - x.double()) / step)[inside]
    low, high = {"floor": (-1, 0), "ceil": (0, 1), "trunc": (-1, 1), "stochastic": (-1, 1)}.get(rounding, (-0.5, 0.5))
    if scheme in ("affine", "symmetric", "linear"):  # ends of the grid between the tensor's: one side may be clamped
        low, high = min(low, -0.5) if rounding == "ceil" else low, max(high, 0.5) if rounding == "floor" else high
    assert ((error >= low - slack) & (error <= high + slack)).all()


@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.clipped and row.dequantizes))
def test_outside_the_error_is_the_distance_to_the_end(scheme):
    limits = (torch.tensor(-1.0), torch.tensor(1.0))
    spec = QuantSpec(scheme=scheme, bits=4)
    x = torch.cat([torch.linspace(2, 9, 50), -torch.linspace(2, 9, 50)])
    copy = quantized(x, spec, limits)
    assert len(copy.unique()) == 2
    low, high = copy.min(), copy.max()
    assert torch.equal(copy, torch.where(x > 0, high, low))
    reach = 1.75 if scheme == "pow2_scale" else 1.15  # a step of 1/4, the power of two above 1/7
    assert 0.8 < high <= reach and (low == 0 if scheme == "unsigned_symmetric" else -reach <= low < -0.8)


def sqnr_db(x: Tensor, copy: Tensor) -> float:
    return 10 * math.log10(x.double().square().sum() / (x.double() - copy.double()).square().sum())


@pytest.mark.parametrize("bits", range(2, 9))
def test_sqnr_of_uniform_inputs(bits):
    """6.02 b dB where the grid's cells fill the range (mid-rise); 20 log10(2^b / (2^b - 2)) less on the restricted grid."""
    x = torch.rand(400_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    half = 1 - 2.0**-bits  # the outermost of 2^b levels, each in the middle of its cell
    ends = (torch.tensor(-half), torch.tensor(half))
    assert sqnr_db(x, quantized(x, QuantSpec(scheme="linear", bits=bits), ends)) == pytest.approx(6.0206 * bits, abs=0.05)
    restricted = quantized(x, QuantSpec(scheme="symmetric_restricted", bits=bits))
    # its outermost cells are half as wide, inside [-1, 1]
    assert sqnr_db(x, restricted) == pytest.approx(20 * math.log10(2**bits - 2), abs=0.05)


GAUSSIAN = {3: (1.95, 13.28), 4: (2.45, 18.89), 5: (2.90, 24.31), 6: (3.30, 29.69), 7: (3.60, 35.07), 8: (3.95, 40.51)}


@pytest.mark.parametrize(("bits", "clip", "expected"), [(bits, *row) for bits, row in GAUSSIAN.items()])
def test_sqnr_of_gaussian_inputs_at_the_best_clip(bits, clip, expected):
    """About 5.4 dB a bit, and a maximum at that clip."""
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(scheme="symmetric_restricted", bits=bits)

    def at(c: float) -> float:
        return sqnr_db(x, quantized(x, spec, (torch.tensor(-c), torch.tensor(c))))

    assert at(clip) == pytest.approx(expected, abs=0.1)
    assert at(clip) > max(at(clip * 0.85), at(clip * 1.15))


def test_noise_is_a_twelfth_of_a_squared_step_and_uncorrelated():
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(scheme="symmetric_restricted", bits=8)
    error = (quantized(x, spec) - x).double()
    assert error.square().mean().item() == pytest.approx(float(step_of(x, spec)) ** 2 / 12, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([error, x.double()]))[0, 1]) < 0.01
