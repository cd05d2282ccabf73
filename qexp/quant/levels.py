"""Quantizers whose levels are a fixed table times a scale a, the largest magnitude of a range: log2, apot, quadratic.

The tables are symmetric about zero, which is a level. A value is brought to u = min(|x| / a, 1) and takes the nearest level; a
value half way between two takes the smaller. Its code is the level's number, 0 for zero, with the sign of x. Rejected: the table
of all signed levels, whose ties would fall to one side.

`log2` and `quadratic` may instead round where their levels are even, in the logarithm or the root (`companded`), as their papers
do; the nearest level is the better copy: between a/2 and a the threshold is 3a/4, of the rounded logarithm a / sqrt 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from qexp.quant.affine import Operation
from qexp.quant.qparams import MIN_SCALE

LEVELS = ("nearest", "companded")


UnitLevels = Callable[[int], Tensor]
Companded = Callable[[Tensor, int], Tensor]


def log2_levels(bits: int) -> Tensor:
    """0 and 2^-e, e = 0 .. 2^(b-1) - 2.

    Args:
        bits: 2 to 8.

    >>> log2_levels(3)
    tensor([0.0000, 0.2500, 0.5000, 1.0000])
    """
    steps = 2 ** (bits - 1) - 1
    return torch.cat([torch.zeros(1), torch.pow(2.0, torch.arange(1 - steps, 1, dtype=torch.float64)).float()])


def log2_steps(unit: Tensor, steps: int) -> Tensor:
    """Powers of two lie even in the logarithm."""
    return torch.log2(unit) + steps


def quadratic_levels(bits: int) -> Tensor:
    """(k / p)^2, k = 0 .. p = 2^(b-1) - 1.

    Args:
        bits: 2 to 16.

    Source: document 003, "non-uniform (quadratic)".

    >>> quadratic_levels(3)
    tensor([0.0000, 0.1111, 0.4444, 1.0000])
    """
    steps = 2 ** (bits - 1) - 1
    return (torch.arange(steps + 1, dtype=torch.float64) / steps).square().float()


def root_steps(unit: Tensor, steps: int) -> Tensor:
    """Squares lie even in the root."""
    return steps * torch.sqrt(unit)


def apot_levels(bits: int) -> Tensor:
    """Sums of n = (b-1) // 2 terms {0, 2^-i, 2^-(i+n), 2^-(i+2n)}, i = 1 .. n, over their largest.

    Where b - 1 is odd, one shorter term {0, 2^-(2n+1)} more, and the terms' last exponents one further.

    Args:
        bits: 2 to 16.

    Source: Li et al. 2020, arXiv:1909.13144, section 2.2 (odd widths as the authors' code has them).
    """
    sums = torch.zeros(1, dtype=torch.float64)
    for exponents in _apot_terms(bits - 1):
        term = torch.tensor([0.0, *(2.0**-exponent for exponent in exponents)], dtype=torch.float64)
        sums = (sums[:, None] + term).flatten()
    sums = sums.sort().values
    return (sums / sums[-1]).float()


def _apot_terms(width: int) -> list[list[int]]:
    """The exponents of each term: handed out in turn, so that all are different."""
    full = width // 2
    short = [[2 * full + 1]] if width % 2 else []
    return [[index, full + index, 2 * full + width % 2 + index] for index in range(1, full + 1)] + short


@cache
def _table(unit_levels: UnitLevels, bits: int) -> tuple[Tensor, Tensor]:
    """Levels, and the midpoints between them."""
    levels = unit_levels(bits)
    return levels, ((levels[1:].double() + levels[:-1].double()) / 2).float()


def level_scale(minimum: Tensor, maximum: Tensor) -> Tensor:
    """The scale a = max(|min|, |max|), at least the smallest normal float32, and 1 where all is zero."""
    scale = torch.maximum(minimum.abs(), maximum.abs())
    return torch.where(scale == 0, torch.ones_like(scale), scale.clamp(min=MIN_SCALE))


def encode_levels(x: Tensor, scale: Tensor, unit_levels: UnitLevels, bits: int) -> Tensor:
    """Values -> signed numbers of the nearest levels, float32.

    Args:
        x: float32.
        scale: broadcastable to x.
        unit_levels: the table.
        bits: its width.
    """
    midpoints = _table(unit_levels, bits)[1].to(x.device)
    return torch.copysign(torch.bucketize(_unit(x, scale), midpoints, out_int32=True).float(), x)


def encode_companded(x: Tensor, scale: Tensor, companded: Companded, bits: int, rounding: Operation) -> Tensor:
    """Values -> signed level numbers, float32, rounded where the levels are even.

    Args:
        x: float32.
        scale: broadcastable to x.
        companded: where a value lies among them, `log2_steps` or `root_steps`.
        bits: width of the table.
        rounding: of the logarithm or root.
    """
    steps = 2 ** (bits - 1) - 1
    even = companded(_unit(x, scale), steps)
    return torch.copysign(rounding(even.clamp_(0, steps)).clamp_(0, steps), x)


def _unit(x: Tensor, scale: Tensor) -> Tensor:
    """U = min(|x| / a, 1)."""
    return (x / scale).abs_().clamp_(max=1)


def decode_levels(codes: Tensor, scale: Tensor, unit_levels: UnitLevels, bits: int) -> Tensor:
    """Signed level numbers -> values: x = sign(code) * level[|code|] * a."""
    levels = _table(unit_levels, bits)[0].to(codes.device)
    return torch.copysign(levels[codes.abs().long()], codes) * scale


def clamp_levels(x: Tensor, scale: Tensor) -> Tensor:
    """The control: what is left of the map without its levels, clamp(x, -a, a)."""
    return torch.minimum(torch.maximum(x, -scale), scale)
