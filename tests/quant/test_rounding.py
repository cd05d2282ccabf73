"""Every rounding against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.quant.rounding import ROUNDINGS, stochastic
from qexp.quant.scheme_table import ROUNDING_NAMES

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
    assert tuple(ROUNDINGS) == ROUNDING_NAMES == (*EXACT, "stochastic")


@pytest.mark.parametrize("name", EXACT)
def test_hard_values(name):
    x = torch.tensor(HARD)
    assert ROUNDINGS[name](x).tolist() == [EXACT[name](Fraction(value)) for value in x.tolist()]


@pytest.mark.parametrize("name", EXACT)
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


@given(value=st.floats(width=32, allow_nan=False, min_value=-(2.0**30), max_value=2.0**30), seed=st.integers(0, 2**63 - 1))
def test_stochastic_takes_a_neighbour(value, seed):
    x = torch.full((20,), value)
    rounded = stochastic(x, generator=torch.Generator().manual_seed(seed))
    assert set(rounded.tolist()) <= {math.floor(value), math.floor(value) + (value != math.floor(value))}


@pytest.mark.parametrize("value", [-2.75, -0.1, 0.0, 0.5, 3.0, 7.9, 1000.25])
def test_stochastic_is_unbiased(value):
    """Within 4 standard deviations of the mean of n draws."""
    n, share = 100_000, value - math.floor(value)
    rounded = stochastic(torch.full((n,), value), generator=torch.Generator().manual_seed(0))
    assert abs(rounded.double().mean().item() - value) <= 4 * math.sqrt(share * (1 - share) / n)


def test_stochastic_draws_from_its_own_generator_in_order():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(3)) * 5
    state = torch.get_rng_state()
    whole = stochastic(x, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(torch.cat([stochastic(part, generator=generator) for part in x.split(130)]), whole)
    assert not torch.equal(stochastic(x, generator=torch.Generator().manual_seed(8)), whole)
    assert torch.equal(stochastic(x), stochastic(x)) and torch.equal(torch.get_rng_state(), state)
