"""Every rounding against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.quant.rounding import ROUNDINGS
from qexp.quant.settings import ROUNDING_NAMES

HALF = Fraction(1, 2)
EXACT = {
    "half_even": round,
    "half_up": lambda x: math.floor(x + HALF),
    "half_away": lambda x: int(math.copysign(math.floor(abs(x) + HALF), x)),
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
}
HARD = [0.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.49999997, -0.49999997, 0.50000006, 8388607.5, -8388607.5, 16777215.0, 1e-45, 3e37]


def test_settings_name_the_roundings():
    assert tuple(ROUNDINGS) == ROUNDING_NAMES


@pytest.mark.parametrize("name", ROUNDINGS)
def test_hard_values(name):
    x = torch.tensor(HARD)
    assert ROUNDINGS[name](x).tolist() == [EXACT[name](Fraction(value)) for value in x.tolist()]


@pytest.mark.parametrize("name", ROUNDINGS)
@given(value=st.floats(width=32, allow_nan=False, min_value=-(2.0**100), max_value=2.0**100))
def test_any_value(name, value):
    assert ROUNDINGS[name](torch.tensor([value])).item() == EXACT[name](Fraction(value))


@pytest.mark.parametrize("name", ROUNDINGS)
def test_in_place_and_into_another(name):
    x = torch.tensor(HARD)
    expected, out, inplace = ROUNDINGS[name](x), torch.empty_like(x), x.clone()
    assert ROUNDINGS[name](x, out=out) is out
    ROUNDINGS[name](inplace, out=inplace)
    assert torch.equal(out, expected) and torch.equal(inplace, expected)
    assert torch.equal(x, torch.tensor(HARD)), "the argument is left alone"
