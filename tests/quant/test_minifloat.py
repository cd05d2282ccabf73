"""Formats by name, and rounding to them: bit for bit `ml_dtypes`' and torch's casts, and gfloat's where it is installed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp.base.errors import UserError
from qexp.quant.float_format import FloatFormat, default_format, format_at, parse_format
from qexp.quant.minifloat import from_codes, round_to_format, to_codes
from qexp.quant.rounding import ROUNDINGS

NUM = 1_000_000
# Name -> dtype of `ml_dtypes` (or numpy).
CASTS = {
    "e4m3fn_nan": "float8_e4m3fn", "e5m2": "float8_e5m2", "e4m3": "float8_e4m3", "e3m4": "float8_e3m4",
    "e4m3fnuz_nan": "float8_e4m3fnuz", "e5m2fnuz_nan": "float8_e5m2fnuz", "e4m3b11fnuz_nan": "float8_e4m3b11fnuz",
    "e2m3": "float6_e2m3fn", "e3m2": "float6_e3m2fn", "e2m1": "float4_e2m1fn", "e8m7": "bfloat16", "e5m10": "float16",
}  # fmt: skip
TORCHS = {
    "e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e4m3fnuz_nan": torch.float8_e4m3fnuz,
    "e5m2fnuz_nan": torch.float8_e5m2fnuz, "e8m7": torch.bfloat16, "e5m10": torch.float16,
}  # fmt: skip


def values_for(element: FloatFormat) -> torch.Tensor:
    """A million: every binade of the format and beyond, any float32, numbers and ties with their neighbours, and what is none."""
    generator = torch.Generator().manual_seed(0)
    low, high = element.min_exponent - element.mantissa_bits - 3, element.max_exponent + 3
    numbers = torch.tensor([element.value(number) for number in range(element.top + 1)])
    ties = (numbers[1:] + numbers[:-1]) / 2
    past = numbers[-1] + (numbers[-1] - numbers[-2]) / 2
    near = [torch.nextafter(x, torch.tensor(end)) for x in (numbers, ties, past[None]) for end in (-torch.inf, torch.inf)]
    edges = torch.cat([numbers, ties, past[None], *near, torch.tensor([torch.inf, torch.nan])])
    edges = torch.cat([edges, -edges])
    anything = torch.randint(-(2**31), 2**31, (NUM // 4,), generator=generator).to(torch.int32).view(torch.float32)
    rest = NUM - len(edges) - len(anything)
    spread = torch.exp2(torch.rand(rest, generator=generator, dtype=torch.float64) * (high - low) + low).float()
    return torch.cat([edges, anything, spread.copysign(torch.randn(rest, generator=generator))])


def assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor, x: torch.Tensor) -> None:
    same = (ours.view(torch.int32) == theirs.view(torch.int32)) | (ours.isnan() & theirs.isnan())
    assert same.all(), [(x[~same][:5], ours[~same][:5], theirs[~same][:5])]


@pytest.mark.parametrize("name", CASTS)
def test_a_million_values_are_cast_as_ml_dtypes_does(name):
    element = parse_format(name)
    x = values_for(element)
    with np.errstate(all="ignore"):
        theirs = torch.from_numpy(x.numpy().astype(np.dtype(getattr(ml_dtypes, CASTS[name], CASTS[name]))).astype(np.float32))
    ours = round_to_format(x, element)
    if not element.has_nan:  # of NaN theirs makes 0
        assert ours[x.isnan()].isnan().all() and (theirs[x.isnan()] == 0).all()
        x, ours, theirs = x[~x.isnan()], ours[~x.isnan()], theirs[~x.isnan()]
    assert_same_bits(ours, theirs, x)


@pytest.mark.parametrize("name", TORCHS)
def test_a_million_values_are_cast_as_torch_does(name):
    element = parse_format(name)
    x = values_for(element)
    assert_same_bits(round_to_format(x, element), x.to(TORCHS[name]).float(), x)


@pytest.mark.parametrize("name", ["e4m3fn", "e4m3fn_nan", "e5m2", "e5m2_sat", "e3m4", "e2m3", "e3m2", "e2m1", "e4m3fnuz_nan"])
def test_a_million_values_are_rounded_as_gfloat_does(name):
    gfloat = pytest.importorskip("gfloat", reason="needs gfloat: pip install 'qexp[dev]'")
    element = parse_format(name)
    ieee = element.special == "ieee"
    info = gfloat.FormatInfo(
        name=name, k=element.bits, precision=element.mantissa_bits + 1, bias=element.bias, is_signed=True,
        domain=gfloat.Domain.Extended if ieee else gfloat.Domain.Finite, has_nz=element.special != "fnuz",
        num_high_nans=2**element.mantissa_bits - 1 if ieee else int(element.special == "fn"),
        has_subnormals=True, is_twos_complement=False,
    )  # fmt: skip
    x = values_for(element)
    x = x[~x.isnan()]
    theirs = torch.from_numpy(gfloat.round_ndarray(info, x.double().numpy(), sat=element.overflow == "sat")).float()
    assert_same_bits(round_to_format(x, element), theirs, x)


@settings(max_examples=60)
@given(
    exponent_bits=st.integers(1, 4), mantissa_bits=st.integers(0, 3), special=st.sampled_from(["", "ieee", "fn", "fnuz", "f"]),
    nosub=st.sampled_from(["", "_nosub"]), data=st.data(),
)  # fmt: skip
def test_any_format_rounds_to_its_nearest_number(exponent_bits, mantissa_bits, special, nosub, data):
    """Against the list of all numbers: the nearest, and of two at one distance the one with the even code."""
    try:
        element = parse_format(f"e{exponent_bits}m{mantissa_bits}{special}{nosub}_sat")
    except UserError:
        # Too few bits for a number, or one exponent that is infinity's beside one whose subnormals are not there.
        assert exponent_bits + mantissa_bits < 3 or (exponent_bits, special, nosub) == (1, "ieee", "_nosub")
        return
    numbers = torch.tensor([element.value(number) for number in range(element.top + 1)], dtype=torch.float64)
    codes = numbers.unique(return_inverse=True)[0]
    low, high = float(numbers[numbers > 0].min()) / 4, float(numbers.max()) * 1.5
    x = torch.tensor(data.draw(st.lists(st.floats(low, high, width=32), min_size=1, max_size=20)))
    ties = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([x, ties.float()])
    distances = (x.double()[:, None] - codes).abs()
    least = distances.min(1).values
    rounded = round_to_format(x, element).double()
    assert torch.isin(rounded, codes).all()
    assert torch.equal((x.double() - rounded).abs(), least)
    tied = (distances == least[:, None]).sum(1) == 2
    if mantissa_bits and element.subnormals:
        assert (to_codes(rounded[tied].float(), element) % 2 == 0).all()
    assert torch.equal(round_to_format(-x, element).double(), -rounded)


@pytest.mark.parametrize("name", [*CASTS, "e3m0", "e1m2", "e1m6b1f", "e4m3fn_nosub", "e5m2_sat"])
def test_codes_are_the_numbers_in_order_and_back(name):
    element = parse_format(name)
    codes = torch.arange(-element.top, element.top + 1).float()
    values = from_codes(codes, element)
    assert values.diff().ge(0).all() and values[-1] == element.max_value
    if element.subnormals:
        assert torch.equal(to_codes(values, element), codes)
    x = values_for(element)[-10_000:] if element.bits > 8 else values_for(element)[::50]
    rounded = round_to_format(x, element)
    back = from_codes(to_codes(rounded, element), element)
    assert torch.equal(back.nan_to_num(nan=7e30), rounded.nan_to_num(nan=7e30))


@pytest.mark.parametrize("rounding", [name for name in ROUNDINGS if name != "stochastic"])
def test_every_rounding_goes_to_a_neighbour(rounding):
    element = parse_format("e4m3fn")
    x = values_for(element)[-50_000:]
    x = x[x.abs() <= element.max_value]
    down, up = (round_to_format(x, element, ROUNDINGS[name]) for name in ("floor", "ceil"))
    ours = round_to_format(x, element, ROUNDINGS[rounding])
    assert (down <= x).all() and (x <= up).all() and ((ours == down) | (ours == up)).all()
    assert (to_codes(up, element) - to_codes(down, element)).max() == 1


def test_what_a_name_states():
    assert parse_format("e5m2") == FloatFormat(5, 2, 15, "ieee", True, "inf")
    assert parse_format("e2m1fn") == parse_format("e2m1") == parse_format("e2m1f_sat") == FloatFormat(2, 1, 1, "f", True, "sat")
    for name in [*CASTS, "e3m0_nosub", "e4m3b3ieee_nan", "e1m6b1f"]:
        assert parse_format(parse_format(name).name) == parse_format(name)
    x = torch.tensor([1e4, -torch.inf])
    assert round_to_format(x, parse_format("e5m2_sat"))[1] == -57344
    assert round_to_format(x, parse_format("e2m3ieee")).tolist() == [torch.inf, -torch.inf]
    assert round_to_format(x, parse_format("e4m3fn_nan")).isnan().all()
    tiny = torch.tensor([0.007, 0.008, 2**-6])  # below e4m3fn's smallest normal number, 2^-6, and that number
    assert round_to_format(tiny, parse_format("e4m3fn_nosub")).tolist() == [0, 2**-6, 2**-6]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("e4m3fnn", "eXmY"),
        ("float8_e4m3fn", "eXmY"),
        ("e9m3", "eXmY"),
        ("e8m8", "It has 17 bits"),
        ("e1m0ieee", "no number but 0"),
        ("e1m6_nosub", "no number but 0"),
        ("e8m4b200", "float32"),
        ("e4m3fn_inf", "e4m3fn_sat. It has no infinities"),
        ("e2m1_nan", "It has no NaN"),
    ],
)
def test_what_is_no_format(name, words):
    with pytest.raises(UserError, match=f"quant.weight.format={name}: allowed is .*{words}"):
        parse_format(name)


def test_the_format_of_a_width():
    assert all(parse_format(default_format(bits)).bits == bits for bits in range(3, 17))
    assert format_at(None, 8) == parse_format("e4m3fn") and format_at("e3m4", 8).mantissa_bits == 4
    with pytest.raises(UserError, match="a format of 4 bits. e3m4 has 8 bits"):
        format_at("e3m4", 4)
