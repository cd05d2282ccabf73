"""Whether stored numbers and new ones are of one network: its float logits must be those that were stored.

Equal settings, data, source and weights have equal hashes, but a network may read what no hash covers. So whenever the float
network of a stored epoch is scored again, it is compared with what is stored, before any new number is written beside it. As
long as the circumstances are the same, on a CPU, the logits are the same to the last bit. Another processor, library or batch
size, any GPU, and compiled code, which is another with each compiler, round otherwise: there the metrics must agree as closely
as rounding lets them. Rejected: to ask for equal bits everywhere, which would stop a sweep that goes on in a cluster's other
partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qexp.engine.evaluate import Evaluation
from qexp.tracking import environment
from qexp.tracking.rounding import same_circumstances, within_rounding

UNCHANGED = "one whose float network scores as it did when its numbers were stored"


def circumstances(
    device: torch.device | str, batch_size: int, *, channels_last: bool = False, engine: str = ""
) -> dict[str, object]:
    """What decides the last bits of logits.

    Args:
        device: that evaluates.
        batch_size: of the evaluation.
        channels_last: memory format of images and weights.
        engine: that ran the network, where it did not run as it is.
    """
    return {
        "device": str(device),
        "cpu": f"{environment.cpu_model()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": environment.versions().get("torch", ""),
        "batch_size": batch_size,
        "channels_last": channels_last,
        **({"engine": engine} if engine else {}),
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
    metrics = {"prec1": evaluation.metrics.prec1, "loss": evaluation.metrics.loss}
    if not same_circumstances(then, now) and within_rounding(stored, metrics, evaluation.metrics.n):
        return ""
    before, after = (f"Prec@1 {scores['prec1']:.2f}, loss {scores['loss']:.4f}" for scores in (stored, metrics))
    others = [f"{name} {then.get(name)}, now {value}" for name, value in now.items() if then and then.get(name) != value]
    since = f"Since then changed: {'; '.join(others)}. " if others else ""
    why = (
        "Settings, data, source and weights have their hashes; what else the network reads (a file, a variable) may have changed."
    )
    return f"Stored is {before}, now it has {after}. {since}{why} New numbers would stand beside those of another network."
