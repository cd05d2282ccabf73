"""`quantize_` against the composition of the public functions, bit for bit, and at every edge, for every scheme."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant import blocks
from qexp.quant.affine import fake_quantize_affine
from qexp.quant.float_quantizers import FloatQuantizer
from qexp.quant.linear import linear_dequantize, linear_quantize
from qexp.quant.qparams import choose_qparams, fixed_point_qparams, scale_factors
from qexp.quant.quantizer import FusedQuantizer
from qexp.quant.ranges import min_max
from qexp.quant.rounding import ROUNDINGS
from qexp.quant.scheme_table import SCHEMES, represents_zero
from qexp.quant.schemes import quantize_

FLOATS = {name for name in SCHEMES if issubclass(SCHEMES.load(name), FloatQuantizer)}  # see test_float_quantizers.py
FUSED = [name for name in SCHEMES if issubclass(SCHEMES.load(name), FusedQuantizer) and name not in FLOATS]
BY_TENSOR = ("nvfp4",)  # a channel's scale depends on the others', and is rounded
DETERMINISTIC = [name for name in ROUNDINGS if name != "stochastic"]
COVERING = SCHEMES.names_where(lambda row: row.covers_ends and row.ends != "upper")  # both signs kept
FITTED = ("lut_quantile", "lut_kmeans", "binary", "ternary")
EXACT = (*FITTED, "affine", "symmetric_restricted", "unsigned_symmetric", "scale_factor", "log2", "apot", "quadratic")
# One value comes back to half a step of 8 bits: an end of its range that the grid covers, a mean, or within the format.
CONSTANTS = SCHEMES.names_where(lambda row: row.covers_ends or row.name in (*FITTED, "fixed_point"))


def width(scheme: str, bits: int) -> int:
    """The nearest width that the scheme has."""
    return min(max(bits, SCHEMES[scheme].min_bits), SCHEMES[scheme].max_bits)


def reference(source: Tensor, spec: QuantSpec) -> Tensor:
    """The definition, from whole-tensor functions and a loop over the channels."""
    if spec.granularity == "per_channel" and spec.scheme not in BY_TENSOR:
        alone = QuantSpec(**{**vars(spec), "granularity": "per_tensor"})
        return torch.stack([reference(part, alone) for part in source.unbind(spec.axis)], dim=spec.axis)
    source = source.float()
    rounding = ROUNDINGS[spec.rounding] if spec.mode == "int" else torch.clone
    if spec.scheme.startswith("linear"):
        codes = rounding(linear_quantize(source, spec.bits))
        return codes if spec.scheme == "linear_raw" else linear_dequantize(codes, spec.bits, *min_max(source))
    if spec.scheme == "scale_factor":
        factor = scale_factors(*min_max(source), spec.bits, signed=spec.signed)
        low, high = (-(2 ** (spec.bits - 1)), 2 ** (spec.bits - 1) - 1) if spec.signed else (0, 2**spec.bits - 1)
        return rounding((source * factor).clamp(low, high)) / factor
    if spec.scheme not in FUSED:
        return quantize_(torch.empty_like(source), source, spec)  # alone; the numbers are tested beside their functions
    if spec.scheme == "fixed_point":
        qparams = fixed_point_qparams(spec.bits, spec.fraction_bits)
    else:
        qparams = choose_qparams(*min_max(source), spec.bits, scheme=spec.scheme, pow2_round=spec.pow2_round)
    name = spec.rounding if spec.mode == "int" else None
    return fake_quantize_affine(source, qparams, rounding=name, arithmetic=spec.arithmetic)


def quantized(source: Tensor, **spec) -> Tensor:
    spec = {"scheme": "linear", "bits": 4, **spec}
    spec["bits"] = width(spec["scheme"], spec["bits"])
    return quantize_(torch.full_like(source, math.nan), source, QuantSpec(**spec))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("arithmetic", ["reciprocal", "divide"])
@pytest.mark.parametrize("mode", ["int", "float"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("scheme", FUSED)
def test_blocks_give_the_bits_of_the_definition(scheme, axis, mode, arithmetic, rounding, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    x = torch.randn(13, 7, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.01
    granularity = {"granularity": "per_tensor"} if axis is None else {"granularity": "per_channel", "axis": axis}
    for bits in (2, 8):
        spec = QuantSpec(scheme=scheme, bits=bits, mode=mode, rounding=rounding, arithmetic=arithmetic, **granularity)
        out = torch.empty_like(x)
        assert quantize_(out, x, spec) is out
        assert same_bits(out, reference(x, spec))


@pytest.mark.parametrize("scheme", FUSED)
def test_default_blocks_on_a_large_tensor(scheme):
    x = torch.randn(3 * blocks.BLOCK * torch.get_num_threads() + 5, generator=torch.Generator().manual_seed(0))
    assert same_bits(quantized(x, scheme=scheme), reference(x, QuantSpec(scheme=scheme, bits=4)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 1),
        lambda x: x[::2, 1:],
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x.double(),
        lambda x: x.abs() + 1,
        lambda x: -x.abs() - 1,
    ],
    ids=["channels_last", "transposed", "strided", "half", "bfloat16", "double", "positive", "negative"],
)
def test_layouts_and_dtypes(scheme, granularity, view):
    x = view(torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)))
    spec = QuantSpec(scheme=scheme, bits=width(scheme, 6), granularity=granularity)
    if scheme == "unsigned_symmetric" and x.max() <= 0:
        with pytest.raises(UserError, match="no element above zero"):
            quantize_(torch.empty(x.shape), x, spec)
        return
    for target in (torch.empty(x.shape), torch.empty(x.shape).to(memory_format=torch.channels_last), torch.empty_like(x)):
        quantize_(target, x, spec)
        assert torch.equal(target, reference(x, spec).to(target.dtype))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_target_may_be_the_source(scheme):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    expected = quantized(x, scheme=scheme)
    quantize_(x, x, QuantSpec(scheme=scheme, bits=width(scheme, 4)))
    assert torch.equal(x, expected)


def test_parameters_are_overwritten_without_a_graph():
    parameter, source = torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.arange(5.0))
    quantize_(parameter, source, QuantSpec(scheme="linear", bits=1))
    assert parameter.is_leaf and parameter.grad_fn is None and parameter.tolist() == [0, 0, 4, 4, 4]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", [name for name in COVERING if SCHEMES[name].control_min_bits and name not in BY_TENSOR])
def test_control_is_close_to_the_identity(scheme, granularity):
    """`float` maps and inverts without rounding: within float32, or within s/2 where the grid ends inside."""
    x = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    control = quantized(x, scheme=scheme, granularity=granularity, bits=8, mode="float")
    span = x.max() - x.min()
    # affine's zero point is an integer, so its grid may end up to half a step inside the range; symmetric's last code always does
    tolerance = 2 * x.abs().max() / 255 / 2 * 1.001 if scheme in ("affine", "symmetric") else 8 * 2.0**-23 * span
    assert (control - x).abs().max() <= tolerance
    assert len(control.unique()) > 1000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_control_exists_or_is_refused(scheme):
    x = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.01
    if SCHEMES[scheme].control_min_bits is None:
        with pytest.raises(UserError, match=f"mode=float: allowed is int for quant={scheme}.*exists on codes only"):
            quantized(x, scheme=scheme, mode="float")
    else:
        assert len(quantized(x, scheme=scheme, mode="float").unique()) > 30
    with pytest.raises(UserError, match="quant=dorefa at 1 bit"):
        quantized(x, scheme="dorefa", bits=1, mode="float")


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_level_count_and_error(scheme, bits, granularity):
    x = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0))
    bits = width(scheme, bits)
    copy = quantized(x, scheme=scheme, bits=bits, granularity=granularity)
    rows = copy if granularity == "per_channel" else copy.reshape(1, -1)
    assert all(len(row.unique()) <= 2**bits for row in rows)
    if scheme in ("linear", "affine", "symmetric", "symmetric_restricted", "scale_factor", "pow2_scale"):
        largest, steps = x.abs().max(), 2**bits - 2
        step = {
            "linear": (x.max() - x.min()) / (steps + 1),
            "affine": (x.max() - x.min()) / (steps + 1),
            "symmetric": 2 * largest / (steps + 1),
            "pow2_scale": 4 * largest / steps,
        }.get(scheme, 2 * largest / steps)
        assert (copy - x).abs().max() <= step / 2 * 1.001
    if scheme == "linear_raw":
        assert copy.min() == -(2 ** (bits - 1)) and copy.max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_is_exact_where_the_scheme_says_so(scheme, granularity):
    x = torch.rand(8, 100, generator=torch.Generator().manual_seed(0)) - 0.35
    x[:, 0] = 0
    for extra in ({}, {"pin_zero": True}) if scheme.startswith("lut") else ({},):
        kept = bool((quantized(x, scheme=scheme, bits=3, granularity=granularity, **extra)[:, 0] == 0).all())
        assert kept == represents_zero(QuantSpec(scheme=scheme, bits=width(scheme, 3), **extra))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_constant_tensors(scheme):
    constant = torch.full((4, 3), 0.7)
    if SCHEMES[scheme].undefined_on == "constant":
        for granularity in ("per_tensor", "per_channel"):
            with pytest.raises(UserError, match="constant 0.7"):
                quantized(constant, scheme=scheme, granularity=granularity)
    elif scheme in CONSTANTS:
        assert (quantized(constant, scheme=scheme, bits=8) - constant).abs().max() <= 1 / 255
    if scheme in EXACT:
        torch.testing.assert_close(quantized(constant, scheme=scheme), constant)
    if SCHEMES[scheme].undefined_on == "nothing":
        assert (quantized(torch.zeros(4, 3), scheme=scheme) == 0).all(), "a format needs no range"
    else:
        with pytest.raises(UserError, match="constant 0"):
            quantized(torch.zeros(4, 3), scheme=scheme)


@pytest.mark.parametrize("scheme", CONSTANTS)
def test_constant_channels_are_reproduced(scheme):
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    x[1], x[2] = 0, 0.7
    copy = quantized(x, scheme=scheme, granularity="per_channel", bits=8)
    assert (copy[1] == 0).all()
    torch.testing.assert_close(copy[2], x[2], atol=1 / 255 if SCHEMES[scheme].max_bits > 4 else 0.05, rtol=0)
    assert scheme in BY_TENSOR or torch.equal(copy[::3], quantized(x[::3], scheme=scheme, granularity="per_channel", bits=8))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_scalars(granularity):
    value = torch.tensor(0.7)
    for scheme in SCHEMES:
        if SCHEMES[scheme].undefined_on == "constant":
            with pytest.raises(UserError, match="constant"):
                quantized(value, scheme=scheme, granularity=granularity)
        elif scheme in CONSTANTS:
            copy = quantized(value, scheme=scheme, granularity=granularity, bits=8)
            assert copy.shape == () and copy == pytest.approx(0.7, abs=1 / 255)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bad_elements_raise_and_leave_the_target(scheme, granularity, bad):
    x, target = torch.randn(5, 40), torch.ones(5, 40)
    x[3, 17] = bad
    with pytest.raises(UserError, match="NaN or infinity"):
        quantize_(target, x, QuantSpec(scheme=scheme, bits=width(scheme, 8), granularity=granularity))
    assert (target == 1).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_empty_raises(scheme):
    with pytest.raises(UserError, match="at least one element"):
        quantized(torch.empty(0, 3), scheme=scheme)


def test_half():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for scheme in ("half", "linear"):
        assert torch.equal(quantize_(torch.empty_like(x), x, QuantSpec(scheme=scheme, bits=16, mode="half")), x.half().float())
    target = torch.empty(100, dtype=torch.float16)
    assert torch.equal(quantize_(target, x, QuantSpec(scheme="half", bits=16, mode="half")), x.half())
    with pytest.raises(UserError, match="65504"):
        quantized(torch.tensor([1.0, 7e4]), mode="half")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"scheme": "linaer"}, "Did you mean linear"),
        ({"mode": "integer"}, "one of float, half, int"),
        ({"rounding": "nearest"}, "half_even"),
        ({"scheme": "affine", "arithmetic": "multiply"}, "reciprocal"),
        ({"granularity": "per_row"}, "per_channel"),
        ({"granularity": "per_group"}, "group_size=None"),
        ({"granularity": "per_in_out_channel"}, "at least 3 dimensions"),
        ({"scheme": "log2", "rounding": "floor"}, "half_even for quant=log2.*companded rounds"),
        ({"scheme": "apot", "rounding": "floor"}, "half_even for quant=apot"),
        ({"scheme": "log2", "level": "nearby"}, "nearest"),
        ({"scheme": "pow2_scale", "pow2_round": "floor"}, "ceil"),
        ({"granularity": "per_channel", "axis": 2}, "axis of a tensor"),
        ({"bits": 0}, "1 to 16"),
        ({"bits": 17}, "1 to 16"),
    ],
)
def test_what_a_spec_may_not_ask(spec, words):
    with pytest.raises(UserError, match=words):
        quantize_(torch.empty(4, 4), torch.randn(4, 4), QuantSpec(**{"scheme": "linear", "bits": 4, **spec}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_widths(scheme):
    x = torch.randn(30, 9, generator=torch.Generator().manual_seed(0))
    for bits in range(1, 17):
        spec = QuantSpec(scheme=scheme, bits=bits)
        if bits == width(scheme, bits):
            assert len(quantize_(torch.empty_like(x), x, spec).unique()) <= 2**bits
        else:
            with pytest.raises(UserError, match=rf"bits={bits}: allowed is (at least|at most|exactly) \d+ for quant={scheme}"):
                quantize_(torch.empty_like(x), x, spec)


def test_shapes_must_agree():
    with pytest.raises(UserError, match=r"\[3, 2\]"):
        quantize_(torch.empty(2, 3), torch.randn(3, 2), QuantSpec(scheme="linear", bits=8))
