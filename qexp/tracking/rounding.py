"""Which numbers of one network another processor or library may round otherwise, and by how much; torch-free.

Equal logits have equal digests. As long as the circumstances are the same, on a CPU, they are the same to the last bit; elsewhere
metrics must agree as closely as rounding lets them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LOSS_SHARE, _LOSS_NATS = 0.01, 0.001  # what rounding may change of a loss
_PREC1_POINTS, _IMAGES = 0.5, 2  # and of Prec@1, whichever is more: images that lie on the edge between two classes
_POINTS, _COUNTS = (
    ("prec1", "delta_prec1", "disagreement"),
    ("n10", "n01"),
)  # of images, in an analysis
_OF_ONE_MACHINE = ("computed", "digest")


def same_circumstances(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """True where two evaluations were made alike, so that the last bits of their logits are those of the network."""
    return then == now and now["device"] == "cpu" and "engine" not in now


def within_rounding(stored: Mapping[str, Any], other: Mapping[str, Any], num_images: int) -> bool:
    """True where metrics differ by no more than rounding may make of the same network.

    Args:
        stored: `prec1` in percent, `loss` in nats.
        other: the same of the other evaluation.
        num_images: that were scored.
    """
    return bool(_same_loss(stored["loss"], other["loss"]) and abs(stored["prec1"] - other["prec1"]) <= _points(num_images))


def values_within_rounding(stored: Any, other: Any, *, name: str = "", num_images: int | None = None) -> bool:
    """True where the values of an analysis differ by no more than rounding may make of the same network.

    Shares and numbers of images are bounded as Prec@1 is, other floats as the loss is; all else is equal.

    Args:
        stored: a value, or a dict of them by name.
        other: the same of the other analysis.
        name: of the value.
        num_images: that were scored; None where that is not known.
    """
    if isinstance(stored, dict) and isinstance(other, dict):
        count = stored.get("n", num_images)
        names = [key for key in stored if key not in _OF_ONE_MACHINE]
        return {*names} == {*other} - {*_OF_ONE_MACHINE} and all(
            values_within_rounding(stored[key], other[key], name=key, num_images=count) for key in names
        )
    points = _points(num_images) if num_images else _PREC1_POINTS
    if name in _POINTS:
        return bool(abs(stored - other) <= points)
    if name in _COUNTS:
        return bool(abs(stored - other) <= points * (num_images or 0) / 100)
    if name == "right":  # one bit an image, in hex
        return len(stored) == len(other) and (int(stored, 16) ^ int(other, 16)).bit_count() <= points * (num_images or 0) / 100
    if isinstance(stored, float) and isinstance(other, float):
        return _same_loss(stored, other)
    return bool(stored == other)


def _same_loss(stored: float, other: float) -> bool:
    return math.isclose(stored, other, rel_tol=_LOSS_SHARE, abs_tol=_LOSS_NATS) or str(stored) == str(other)  # nan too


def _points(num_images: int) -> float:
    """What rounding may change of a share of images, percent."""
    return max(_PREC1_POINTS, 100 * _IMAGES / num_images)
