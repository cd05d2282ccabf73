"""Rounding to integers: the named step between a map and its codes.

Each function takes `(x, out=None)`, accepts `out=x`, keeps dtype and shape and is exact for every finite float: in particular
`half_up` is not `floor(x + 0.5)`, which in float32 lifts 0.49999997 to 1.
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


ROUNDINGS: dict[str, Callable[..., Tensor]] = {
    "half_even": half_even,
    "half_up": half_up,
    "half_away": half_away,
    "floor": floor,
    "ceil": ceil,
    "trunc": trunc,
}
