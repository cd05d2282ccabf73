"""Checks of the arguments of every statistic: correctness of the same images, shares between 0 and 1, finite numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qexp.base.errors import UserError

SAME_IMAGES = "Paired statistics need every network's answer for the same images in the same order."


def as_correct(name: str, values: ArrayLike, *, ndim: int = 1) -> NDArray[np.bool_]:
    """Return correctness as a bool array; [n] or, with `ndim=2`, [seeds, n].

    Args:
        name: of the network, for the message.
        values: True where the network was right; 0 and 1 will do.
        ndim: 1 or 2.

    Raises:
        UserError: there is no image, the shape is another, or a value is neither 0 nor 1.
    """
    array = np.asarray(values)
    shape = "[n]" if ndim == 1 else "[seeds, n]"
    if array.ndim != ndim:
        raise UserError(f"correctness of {name}", f"array of shape {array.shape}", allowed=f"an array {shape}")
    if array.size == 0:
        raise UserError(f"correctness of {name}", "no image", allowed=f"an array {shape} of at least one image")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise UserError(f"correctness of {name}", "other values", allowed="True or False for each image")
    return array.astype(bool)


def check_same_length(lengths: Mapping[str, int]) -> int:
    """Return the number of images n, or raise `UserError` unless all names have as many."""
    (first, n), *others = lengths.items()
    for name, length in others:
        if length != n:
            raise UserError(f"images of {name}", length, allowed=f"{n}, as many as {first} has", remedy=SAME_IMAGES)
    return n


def check_same_images(index: Mapping[str, ArrayLike], n: int) -> None:
    """Raise `UserError` unless all index arrays hold the same n different images in the same order.

    Args:
        index: name -> positions of its images in the split, [n] integers.
        n: number of images.
    """
    first, expected = "", None
    for name, values in index.items():
        array = np.asarray(values)
        if array.shape != (n,) or array.dtype.kind not in "iu":
            what = f"{array.dtype} array of shape {array.shape}"
            raise UserError(f"index of {name}", what, allowed=f"an array of {n} integers, one for each image")
        if len(np.unique(array)) != n:
            raise UserError(f"index of {name}", "an image twice", allowed="each image once")
        if expected is None:
            first, expected = name, array
        elif not np.array_equal(array, expected):
            position = int(np.flatnonzero(array != expected)[0])
            raise UserError(
                f"index of {name}",
                f"image {array[position]} at place {position}",
                allowed=f"image {expected[position]}, as {first} has there",
                remedy=SAME_IMAGES,
            )


def check_counts(n10: int, n01: int, n: int) -> None:
    """Raise `UserError` unless n10 and n01 count different ones of n >= 1 images."""
    if n < 1:
        raise UserError("n", n, allowed="at least one image")
    if min(n10, n01) < 0 or n10 + n01 > n:
        raise UserError("n10, n01", f"{n10}, {n01}", allowed=f"counts of no more than {n} images together")


def check_share(key: str, value: float) -> None:
    """Raise `UserError` unless 0 < value < 1."""
    if not 0 < value < 1:
        raise UserError(key, value, allowed="a number between 0 and 1, both excluded")


def as_finite(key: str, values: ArrayLike, *, least: int = 1) -> NDArray[np.float64]:
    """Return [count] float64, or raise `UserError` for fewer than `least` numbers or one that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise UserError(key, f"{array.size} values", allowed=f"a list of at least {least}")
    if not np.isfinite(array).all():
        raise UserError(key, array[~np.isfinite(array)][0], allowed="finite numbers")
    return array
