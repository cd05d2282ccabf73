"""`quantize_` against the composition of the public functions, bit for bit, and at every edge."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.nouns import QuantSpec
from qexp.quant import blocks
from qexp.quant.affine import fake_quantize_affine
from qexp.quant.linear import linear_dequantize, linear_quantize
from qexp.quant.qparams import choose_qparams
from qexp.quant.ranges import min_max
from qexp.quant.rounding import ROUNDINGS
from qexp.quant.schemes import SCHEMES, quantize_
from qexp.quant.settings import SCHEME_NAMES

GRIDS = [name for name in SCHEMES if name != "half"]


def reference(source: Tensor, spec: QuantSpec) -> Tensor:
    """The definition, from whole-tensor functions and a loop over the channels."""
    if spec.granularity == "per_channel":
        alone = QuantSpec(**{**vars(spec), "granularity": "per_tensor"})
        return torch.stack([reference(part, alone) for part in source.unbind(spec.axis)], dim=spec.axis)
    source = source.float()
    rounding = ROUNDINGS[spec.rounding] if spec.mode == "int" else torch.clone
    if spec.scheme.startswith("linear"):
        codes = rounding(linear_quantize(source, spec.bits))
        return codes if spec.scheme == "linear_raw" else linear_dequantize(codes, spec.bits, *min_max(source))
    qparams = choose_qparams(*min_max(source), spec.bits, symmetric=spec.scheme == "symmetric")
    name = spec.rounding if spec.mode == "int" else None
    return fake_quantize_affine(source, qparams, rounding=name, arithmetic=spec.arithmetic)


def quantized(source: Tensor, **spec) -> Tensor:
    spec = {"scheme": "linear", "bits": 4, **spec}
    return quantize_(torch.full_like(source, math.nan), source, QuantSpec(**spec))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))


def test_settings_name_the_schemes():
    assert tuple(GRIDS) == SCHEME_NAMES


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("arithmetic", ["reciprocal", "divide"])
@pytest.mark.parametrize("mode", ["int", "float"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("scheme", GRIDS)
def test_blocks_give_the_bits_of_the_definition(scheme, axis, mode, arithmetic, rounding, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    x = torch.randn(13, 7, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.01
    granularity = {"granularity": "per_tensor"} if axis is None else {"granularity": "per_channel", "axis": axis}
    for bits in (2, 8):
        spec = QuantSpec(scheme=scheme, bits=bits, mode=mode, rounding=rounding, arithmetic=arithmetic, **granularity)
        out = torch.empty_like(x)
        assert quantize_(out, x, spec) is out
        assert same_bits(out, reference(x, spec))


@pytest.mark.parametrize("scheme", GRIDS)
def test_default_blocks_on_a_large_tensor(scheme):
    x = torch.randn(3 * blocks.BLOCK * torch.get_num_threads() + 5, generator=torch.Generator().manual_seed(0))
    assert same_bits(quantized(x, scheme=scheme), reference(x, QuantSpec(scheme=scheme, bits=4)))


@pytest.mark.parametrize("scheme", GRIDS)
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
    spec = QuantSpec(scheme=scheme, bits=6, granularity=granularity)
    for target in (torch.empty(x.shape), torch.empty(x.shape).to(memory_format=torch.channels_last), torch.empty_like(x)):
        quantize_(target, x, spec)
        assert torch.equal(target, reference(x, spec).to(target.dtype))


@pytest.mark.parametrize("scheme", GRIDS)
def test_target_may_be_the_source(scheme):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    expected = quantized(x, scheme=scheme)
    quantize_(x, x, QuantSpec(scheme=scheme, bits=4))
    assert torch.equal(x, expected)


def test_parameters_are_overwritten_without_a_graph():
    parameter, source = torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.arange(5.0))
    quantize_(parameter, source, QuantSpec(scheme="linear", bits=1))
    assert parameter.is_leaf and parameter.grad_fn is None and parameter.tolist() == [0, 0, 4, 4, 4]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", [name for name in GRIDS if SCHEMES[name].dequantizes])
def test_control_is_close_to_the_identity(scheme, granularity):
    """`float` maps and inverts without rounding: within float32 for a clamp that touches no weight, within s/2 for affine's."""
    x = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    control = quantized(x, scheme=scheme, granularity=granularity, bits=8, mode="float")
    span = x.max() - x.min()
    # affine's zero point is an integer, so its grid may end up to half a step inside the range
    tolerance = span / 255 / 2 * 1.001 if scheme == "affine" else 8 * 2.0**-23 * span
    assert (control - x).abs().max() <= tolerance
    assert len(control.unique()) > 1000


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("scheme", GRIDS)
def test_level_count_and_error(scheme, bits, granularity):
    x = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0))
    copy = quantized(x, scheme=scheme, bits=bits, granularity=granularity)
    rows = copy if granularity == "per_channel" else copy.reshape(1, -1)
    assert all(len(row.unique()) <= 2**bits for row in rows)
    if SCHEMES[scheme].dequantizes:
        steps = 2**bits - 2 if scheme == "symmetric" else 2**bits - 1
        step = 2 * x.abs().max() / steps if scheme == "symmetric" else (x.max() - x.min()) / steps
        assert (copy - x).abs().max() <= step / 2 * 1.001
    else:
        assert copy.min() == -(2 ** (bits - 1)) and copy.max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_is_exact_where_the_scheme_says_so(scheme, granularity):
    x = torch.rand(8, 100, generator=torch.Generator().manual_seed(0)) - 0.3
    x[:, ::3] = 0
    kept = bool((quantized(x, scheme=scheme, bits=3, granularity=granularity)[:, ::3] == 0).all())
    assert kept == SCHEMES[scheme].zero_representable


@pytest.mark.parametrize("scheme", GRIDS)
def test_constant_tensors(scheme):
    constant = torch.full((4, 3), 0.7)
    if SCHEMES[scheme].needs_range:
        for granularity in ("per_tensor", "per_channel"):
            with pytest.raises(UserError, match="constant 0.7"):
                quantized(constant, scheme=scheme, granularity=granularity)
    else:
        torch.testing.assert_close(quantized(constant, scheme=scheme), constant)
    with pytest.raises(UserError, match="constant 0"):
        quantized(torch.zeros(4, 3), scheme=scheme)


@pytest.mark.parametrize("scheme", [name for name in GRIDS if SCHEMES[name].dequantizes])
def test_constant_channels_are_reproduced(scheme):
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    x[1], x[2] = 0, 0.7
    copy = quantized(x, scheme=scheme, granularity="per_channel")
    assert (copy[1] == 0).all()
    torch.testing.assert_close(copy[2], x[2])
    assert torch.equal(copy[[0, 3]], quantized(x[[0, 3]], scheme=scheme, granularity="per_channel"))


def test_scalars():
    value = torch.tensor(0.7)
    for scheme in ("affine", "symmetric"):
        for granularity in ("per_tensor", "per_channel"):
            copy = quantized(value, scheme=scheme, granularity=granularity)
            assert copy.shape == () and copy == pytest.approx(0.7)
    with pytest.raises(UserError, match="constant"):
        quantized(value, scheme="linear")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bad_elements_raise_and_leave_the_target(scheme, granularity, bad):
    x, target = torch.randn(5, 40), torch.ones(5, 40)
    x[3, 17] = bad
    with pytest.raises(UserError, match="NaN or infinity"):
        quantize_(target, x, QuantSpec(scheme=scheme, bits=8, granularity=granularity))
    assert (target == 1).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_empty_raises(scheme):
    with pytest.raises(UserError, match="at least one element"):
        quantized(torch.empty(0, 3), scheme=scheme)


def test_half():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for spec in ({"scheme": "half"}, {"scheme": "linear", "mode": "half"}):
        assert torch.equal(quantized(x, **spec), x.half().float())
    target = torch.empty(100, dtype=torch.float16)
    assert torch.equal(quantize_(target, x, QuantSpec(scheme="half", bits=16)), x.half())
    with pytest.raises(UserError, match="65504"):
        quantized(torch.tensor([1.0, 7e4]), scheme="half")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"scheme": "linaer"}, "Did you mean linear"),
        ({"mode": "integer"}, "one of float, half, int"),
        ({"rounding": "nearest"}, "half_even"),
        ({"scheme": "affine", "arithmetic": "multiply"}, "reciprocal"),
        ({"granularity": "per_group"}, "per_channel"),
        ({"granularity": "per_channel", "axis": 2}, "axis of a tensor"),
        ({"bits": 0}, "1 to 16"),
        ({"bits": 17}, "1 to 16"),
        ({"scheme": "symmetric", "bits": 1}, "2 to 16"),
    ],
)
def test_what_a_spec_may_not_ask(spec, words):
    with pytest.raises(UserError, match=words):
        quantized(torch.randn(4, 4), **spec)


def test_shapes_must_agree():
    with pytest.raises(UserError, match=r"\[3, 2\]"):
        quantize_(torch.empty(2, 3), torch.randn(3, 2), QuantSpec(scheme="linear", bits=8))
