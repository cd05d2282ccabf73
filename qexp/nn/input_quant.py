"""What a quantized copy does to the normalized images before its first layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def keep(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def to_int(images: Tensor) -> Tensor:
    """Truncate to integers: `images.int().float()`.

    On images normalized to unit variance this leaves about five levels, -2 to 2, with a dead zone of double width around zero.

    Source: document 002, "Integer".

    >>> import torch
    >>> to_int(torch.tensor([-1.7, -0.3, 0.9, 2.1]))
    tensor([-1.,  0.,  0.,  2.])
    """
    return images.int().to(images.dtype)


def to_nearest(images: Tensor) -> Tensor:
    """Round to the nearest integer, ties to even.

    >>> import torch
    >>> to_nearest(torch.tensor([-1.7, 0.9, 2.1]))
    tensor([-2.,  1.,  2.])
    """
    return images.round()


INPUT_QUANTS: dict[str, Callable[[Tensor], Tensor]] = {"none": keep, "int": to_int, "round": to_nearest}
