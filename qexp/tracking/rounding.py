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


def same_circumstances(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """True where two evaluations were made alike, so that the last bits of their logits are those of the network."""
    return then == now and now["device"] == "cpu"


def within_rounding(stored: Mapping[str, Any], other: Mapping[str, Any], num_images: int) -> bool:
    """True where metrics differ by no more than rounding may make of the same network.

    Args:
        stored: `prec1` in percent, `loss` in nats.
        other: the same of the other evaluation.
        num_images: that were scored.
    """
    points = max(_PREC1_POINTS, 100 * _IMAGES / num_images)
    (loss, loss_now) = (stored["loss"], other["loss"])
    same_loss = math.isclose(loss, loss_now, rel_tol=_LOSS_SHARE, abs_tol=_LOSS_NATS) or str(loss) == str(loss_now)  # nan too
    return bool(same_loss and abs(stored["prec1"] - other["prec1"]) <= points)
