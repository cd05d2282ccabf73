"""The level tables by hand and against their papers, and the choice of a level."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from qexp.base.types import QuantSpec
from qexp.quant.encoding import encode
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_

TABLES = ("log2", "apot", "quadratic")


def unit_levels(scheme: str, bits: int) -> torch.Tensor:
    return SCHEMES.load(scheme).unit_levels(bits)


def quantized(x: torch.Tensor, **spec) -> torch.Tensor:
    return quantize_(torch.empty_like(x), x, QuantSpec(**spec))


@pytest.mark.parametrize("scheme", TABLES)
def test_tables(scheme):
    for bits in range(2, SCHEMES[scheme].max_bits + 1):
        levels = unit_levels(scheme, bits)
        assert len(levels) == 2 ** (bits - 1) and levels[0] == 0 and levels[-1] == 1
        assert (levels.diff() > 0).all()
        assert (levels[1:] >= torch.finfo(torch.float32).tiny).all()


def test_log2_table():
    assert unit_levels("log2", 4).tolist() == [0, *(2.0**-e for e in range(6, -1, -1))]


def apot_of_the_paper(width: int) -> list[float]:
    """Sums of n = width / 2 terms p_i in {0, 2^-i, 2^-(i+n), 2^-(i+2n)}, over their largest: k = 2."""
    n = width // 2
    terms = [[0.0, *(2.0 ** -(i + j * n) for j in range(3))] for i in range(n)]
    sums = sorted(sum(summands) for summands in itertools.product(*terms))
    return [value / sums[-1] for value in sums]


@pytest.mark.parametrize("bits", [3, 5, 7, 9])
def test_apot_is_the_paper_at_odd_widths(bits):
    assert unit_levels("apot", bits).tolist() == torch.tensor(apot_of_the_paper(bits - 1), dtype=torch.float64).float().tolist()


def test_apot_at_even_widths():
    """One shorter term, as in the authors' code: {0, 2^-1, 2^-2, 2^-4} + {0, 2^-3} at 4 bits."""
    for bits, terms in ((2, [[0, 1]]), (4, [[0, 8, 4, 1], [0, 2]]), (6, [[0, 64, 16, 2], [0, 32, 8, 1], [0, 4]])):
        sums = sorted(sum(summands) for summands in itertools.product(*terms))
        assert unit_levels("apot", bits).tolist() == pytest.approx([value / sums[-1] for value in sums], rel=1e-7)


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("scheme", TABLES)
def test_the_nearest_level_is_taken(scheme, bits):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    levels = unit_levels(scheme, bits) * x.abs().max()
    levels = torch.cat([-levels.flip(0), levels])
    copy = quantized(x, scheme=scheme, bits=bits)
    nearest = (x[:, None] - levels).abs().amin(1)
    assert torch.allclose((copy - x).abs(), nearest, rtol=1e-5, atol=1e-7)
    assert set(copy.unique().tolist()) <= set(levels.tolist())


@pytest.mark.parametrize("scheme", TABLES)
def test_a_tie_goes_to_the_smaller_magnitude(scheme):
    levels = unit_levels(scheme, 3)
    ties = (levels[1:] + levels[:-1]) / 2
    x = torch.cat([ties, -ties, torch.ones(1)])
    codes = encode(x, QuantSpec(scheme=scheme, bits=3)).codes
    if scheme != "quadratic":  # whose midpoints are no floats
        assert codes.tolist() == [0, 1, 2, 0, -1, -2, 3]
    assert torch.equal(codes[:3], -codes[3:6])


def test_rounding_the_logarithm_is_not_the_nearest_level():
    """Between 1/2 and 1 the threshold is 1/sqrt 2 in the logarithm, 3/4 in the value."""
    x = torch.tensor([1.0, 0.72, 0.70, 0.76])
    assert quantized(x, scheme="log2", bits=4, level="companded").tolist() == [1, 1, 0.5, 1]
    assert quantized(x, scheme="log2", bits=4).tolist() == [1, 0.5, 0.5, 1]
    small = torch.tensor([1.0, 2.0**-6, 2.0**-6.4, 2.0**-6.6, 0.0])
    assert quantized(small, scheme="log2", bits=4, level="companded").tolist() == [1, 2.0**-6, 2.0**-6, 0, 0]


def test_rounding_the_root():
    x = torch.tensor([1.0, (2.4 / 3) ** 2, (2.6 / 3) ** 2, -((1.6 / 3) ** 2)])
    expected = [1, 4 / 9, 1, -4 / 9]
    assert quantized(x, scheme="quadratic", bits=3, level="companded").tolist() == pytest.approx(expected)
    assert quantized(x, scheme="quadratic", bits=3, level="companded", rounding="floor").tolist() == pytest.approx(
        [1, 4 / 9, 4 / 9, -1 / 9]
    )


@pytest.mark.parametrize("scheme", TABLES)
def test_small_values_are_finer_than_those_of_an_even_grid(scheme):
    """What the tables are for: a value near zero is met better, relative to itself, than by even steps."""
    x = torch.tensor([1.0, 0.06])
    even = quantized(x, scheme="symmetric_restricted", bits=4)[1]
    assert abs(quantized(x, scheme=scheme, bits=4)[1] - 0.06) < abs(even - 0.06)
    assert math.isclose(quantized(x, scheme=scheme, bits=4)[0], 1)
