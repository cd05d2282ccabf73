"""Whether stored numbers and new ones are of one network: its float logits must be those that were stored.

Equal settings, data, source and weights have equal hashes, but a network may read what no hash covers. So whenever the float
network of a stored epoch is scored again, it is compared with what is stored, before any new number is written beside it. As
long as the circumstances are the same, on a CPU, the logits are the same to the last bit. Another processor, library or batch
size, and any GPU, round otherwise: there the metrics must agree as closely as rounding lets them. Rejected: to ask for equal
bits everywhere, which would stop a sweep that goes on in a cluster's other partition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from qexp.engine.evaluate import Evaluation
from qexp.tracking import environment

_LOSS_SHARE, _LOSS_NATS = 0.01, 0.001  # what rounding may change of a loss
_PREC1_POINTS, _IMAGES = 0.5, 2  # and of Prec@1, whichever is more: images that lie on the edge between two classes
UNCHANGED = "one whose float network scores as it did when its numbers were stored"


def circumstances(device: torch.device | str, batch_size: int, *, channels_last: bool = False) -> dict[str, object]:
    """What decides the last bits of logits.

    Args:
        device: that evaluates.
        batch_size: of the evaluation.
        channels_last: memory format of images and weights.
    """
    return {
        "device": str(device),
        "cpu": f"{environment.cpu_model()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": environment.versions().get("torch", ""),
        "batch_size": batch_size,
        "channels_last": channels_last,
    }


def as_stored(evaluation: Evaluation, now: Mapping[str, object]) -> dict[str, object]:
    """What is stored of a float network's evaluation, to be compared with by `changed`."""
    return {"digest": evaluation.digest, "computed": dict(now)}


def changed(stored: Mapping[str, Any] | None, evaluation: Evaluation, now: Mapping[str, object]) -> str:
    """How the float network scores otherwise than stored, in words; empty where it does not, or nothing is stored.

    Args:
        stored: `digest`, `prec1`, `loss`, and `computed`, which older versions did not store.
        evaluation: of the same epoch and images, made now.
        now: the `circumstances` that it was made in.
    """
    if stored is None or stored["digest"] == evaluation.digest:
        return ""
    then = stored.get("computed")
    same = then == now and now["device"] == "cpu"
    if not same and _agree(stored, evaluation):
        return ""
    before, after = (f"Prec@1 {prec1:.2f}, loss {loss:.4f}" for prec1, loss in _both(stored, evaluation))
    others = [f"{name} {then.get(name)}, now {value}" for name, value in now.items() if then and then.get(name) != value]
    since = f"Since then changed: {'; '.join(others)}. " if others else ""
    why = (
        "Settings, data, source and weights have their hashes; what else the network reads (a file, a variable) may have changed."
    )
    return f"Stored is {before}, now it has {after}. {since}{why} New numbers would stand beside those of another network."


def _both(stored: Mapping[str, Any], evaluation: Evaluation) -> tuple[tuple[float, float], tuple[float, float]]:
    """(Prec@1, loss) as stored and as scored now."""
    return (stored["prec1"], stored["loss"]), (evaluation.metrics.prec1, evaluation.metrics.loss)


def _agree(stored: Mapping[str, Any], evaluation: Evaluation) -> bool:
    """True where the metrics differ by no more than rounding may make of the same network."""
    (prec1, loss), (prec1_now, loss_now) = _both(stored, evaluation)
    points = max(_PREC1_POINTS, 100 * _IMAGES / evaluation.metrics.n)
    same_loss = math.isclose(loss, loss_now, rel_tol=_LOSS_SHARE, abs_tol=_LOSS_NATS) or str(loss) == str(loss_now)  # nan too
    return same_loss and abs(prec1 - prec1_now) <= points
