"""Rounding to integers: the named step between a map and its codes.

Each function takes `(x, out=None)`, accepts `out=x`, keeps dtype and shape and is exact for every finite float: in particular
`half_up` is not `floor(x + 0.5)`, which in float32 lifts 0.49999997 to 1. Only `stochastic` draws numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def half_even(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Nearest integer, ties to the even one; what `torch.round` and ONNX do.

    >>> half_even(torch.tensor([0.5, 1.5, -0.5])).tolist()
    [0.0, 2.0, -0.0]
    """
    return torch.round(x, out=out)


def half_up(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Nearest integer, ties towards +infinity: ceil(floor(2 x) / 2).

    >>> half_up(torch.tensor([0.5, 1.5, -0.5])).tolist()
    [1.0, 2.0, -0.0]
    """
    return torch.mul(x, 2, out=out).floor_().div_(2).ceil_()


def half_away(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Nearest integer, ties away from zero: sign(x) half_up(|x|).

    >>> half_away(torch.tensor([0.5, 1.5, -0.5])).tolist()
    [1.0, 2.0, -1.0]
    """
    return torch.copysign(half_up(x.abs()), x, out=out)


def floor(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Largest integer not above x."""
    return torch.floor(x, out=out)


def ceil(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Smallest integer not below x."""
    return torch.ceil(x, out=out)


def trunc(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The integer part, towards zero; what `tensor.int()` does."""
    return torch.trunc(x, out=out)


def stochastic(x: Tensor, out: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
    """The integer below x, or with probability x - floor(x) the one above: floor(x + u), u uniform in [0, 1), unbiased.

    The u are drawn on the CPU in C order, so that they are the same on every device. Computed as floor(x) + [u < x - floor(x)]:
    the sum x + u would be rounded.

    Args:
        x: any shape.
        out: where to write; may be x.
        generator: of the CPU; one seeded with 0 if None, never torch's own.

    Source: Gupta et al. 2015, arXiv:1502.02551, section 3.2.

    >>> stochastic(torch.full((1000,), 2.25), generator=torch.Generator().manual_seed(1)).unique().tolist()
    [2.0, 3.0]
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    uniform = torch.rand(x.shape, generator=generator, dtype=torch.float32).to(x.device)
    below = torch.floor(x)
    return torch.add(below, uniform < x - below, out=out)


ROUNDINGS: dict[str, Callable[..., Tensor]] = {
    "half_even": half_even,
    "half_up": half_up,
    "half_away": half_away,
    "floor": floor,
    "ceil": ceil,
    "trunc": trunc,
    "stochastic": stochastic,
}
