"""Integer codes and back: equal to `quantize_` for every scheme, granularity and rounding, packed in between."""

from __future__ import annotations

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.encoding import decode, encode
from qexp.quant.scheme_table import GRANULARITIES, ROUNDING_NAMES, SCHEMES
from qexp.quant.schemes import quantize_


def x_of(view: str = "contiguous") -> torch.Tensor:
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.01
    return {"contiguous": x, "channels_last": x.to(memory_format=torch.channels_last), "half": x.half(), "strided": x[::2, 1:]}[
        view
    ]


def four_bits(scheme: str) -> int:
    """Or the nearest width that it has."""
    return min(max(4, SCHEMES[scheme].min_bits), SCHEMES[scheme].max_bits)


def check(x: torch.Tensor, spec: QuantSpec, limits=None) -> None:
    expected = quantize_(torch.empty(x.shape), x, spec, limits)
    encoded = encode(x, spec, limits)
    low, high = encoded.code_range
    assert encoded.codes.dtype == torch.int32 and encoded.codes.shape == x.shape
    assert low <= encoded.codes.min() and encoded.codes.max() <= high
    assert torch.equal(decode(encoded), expected)
    assert torch.equal(decode(encoded.unpack(encoded.pack())), expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoded_codes_are_the_copy(scheme, granularity):
    group_size = 7 if granularity == "per_group" else None
    for bits in (1, 2, 3, 4, 8, 16):
        if SCHEMES[scheme].min_bits <= bits <= SCHEMES[scheme].max_bits:
            check(x_of(), QuantSpec(scheme=scheme, bits=bits, granularity=granularity, group_size=group_size))


@pytest.mark.parametrize("rounding", ROUNDING_NAMES)
@pytest.mark.parametrize("arithmetic", ["reciprocal", "divide"])
@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.rounds))
def test_roundings_and_arithmetics(scheme, arithmetic, rounding):
    for granularity, axis in (("per_tensor", 0), ("per_channel", 1)):
        bits = min(max(3, SCHEMES[scheme].min_bits), SCHEMES[scheme].max_bits)
        spec = QuantSpec(scheme=scheme, bits=bits, rounding=rounding, arithmetic=arithmetic, granularity=granularity, axis=axis)
        check(x_of(), spec)


@pytest.mark.parametrize("view", ["channels_last", "half", "strided"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layouts(scheme, view):
    bits = four_bits(scheme)
    for granularity in ("per_tensor", "per_channel", "per_in_out_channel"):
        check(x_of(view), QuantSpec(scheme=scheme, bits=bits, granularity=granularity))


@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.clipped))
def test_limits(scheme):
    check(x_of(), QuantSpec(scheme=scheme, bits=4), (torch.tensor(-0.05), torch.tensor(0.1)))
    low, high = -torch.arange(1.0, 7.0) / 50, torch.arange(1.0, 7.0) / 40
    check(x_of(), QuantSpec(scheme=scheme, bits=4, granularity="per_channel"), (low, high))


@pytest.mark.parametrize(
    "extra",
    [
        {"scheme": "log2", "level": "companded"},
        {"scheme": "quadratic", "level": "companded", "rounding": "floor"},
        {"scheme": "scale_factor", "signed": False},
        {"scheme": "fixed_point", "fraction_bits": 6},
        {"scheme": "pow2_scale", "pow2_round": "nearest"},
        {"scheme": "lut_quantile", "pin_zero": True},
        {"scheme": "minifloat", "format": "e3m0"},
        {"scheme": "minifloat", "format": "e2m1", "scaled": False},
        {"scheme": "bfp", "granularity": "per_block", "block_size": 7},
    ],
)
def test_own_settings(extra):
    check(x_of(), QuantSpec(bits=4, **extra))


def test_scalars_and_constant_channels():
    check(torch.tensor(0.7), QuantSpec(scheme="affine", bits=4, granularity="per_channel"))
    x = x_of().flatten(1).clone()
    x[1], x[2] = 0, 0.7
    for scheme in SCHEMES:
        check(x, QuantSpec(scheme=scheme, bits=four_bits(scheme), granularity="per_channel"))


def test_what_has_no_codes():
    for spec in (QuantSpec(scheme="half", bits=16, mode="half"), QuantSpec(scheme="affine", bits=4, mode="float")):
        with pytest.raises(UserError, match="integer codes"):
            encode(torch.randn(5), spec)
