"""Re-estimation of batch norm's statistics on a quantized network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.base.errors import UserError
from qexp.base.progress import track
from qexp.base.text import Note
from qexp.base.types import Batch
from qexp.nn.channels import running_statistics
from qexp.nn.graph import evaluating


@dataclass(frozen=True)
class Reestimated:
    """What re-estimation did.

    Args:
        num_norms: batch norms with new statistics.
        num_images: that they were taken on.
        notes: batch norms that stay as they are, and why.
    """

    num_norms: int
    num_images: int
    notes: tuple[Note, ...]


@torch.no_grad()
def reestimate_batch_norm_(model: nn.Module, batches: Iterable[Batch]) -> Reestimated:
    """Replace the running statistics of every batch norm by their mean over these batches, each normalized by its own.

    mean = 1/B sum_b mean_b,  var = 1/B sum_b var_b (unbiased), the cumulative average of torch's momentum=None

    Batches count alike, so a smaller last one counts too much. Nothing else changes: dropout stays off, and momenta and counters
    are as before. One pass suffices, since while it runs each batch norm sees what batch statistics make of the ones before.

    Args:
        model: overwritten in place.
        batches: calibration images, at least two of them in each batch.

    Raises:
        UserError: no images.

    Source: Sun et al. 2019, arXiv:1902.03090, section 3; torch.nn.BatchNorm2d.
    """
    present = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    norms = {name: norm for name, norm in present.items() if norm.track_running_stats}
    notes = [Note(name, "it keeps no running statistics") for name in present if name not in norms]
    if not norms:
        return Reestimated(0, 0, tuple(notes))
    kept = [
        (name, norm, norm.momentum, _counter(norm).clone(), [value.clone() for value in running_statistics(norm)])
        for name, norm in norms.items()
    ]
    num_images = 0
    with evaluating(model):
        try:
            for norm in norms.values():
                norm.train()
                norm.momentum = None
                norm.reset_running_stats()
            for batch in track(batches, "batch"):
                model(batch.images)
                num_images += len(batch.images)
        finally:
            for name, norm, momentum, counter, statistics in kept:
                if not _counter(norm):  # it saw no image: not executed, or none came
                    notes.append(Note(name, "the network does not execute it"))
                    for current, before in zip(running_statistics(norm), statistics, strict=True):
                        current.copy_(before)
                norm.momentum = momentum
                _counter(norm).copy_(counter)
    if not num_images:
        raise UserError("correct.reestimate_bn", True, allowed="at least one batch of calibration images")
    return Reestimated(len(present) - len(notes), num_images, tuple(notes))


def _counter(norm: _BatchNorm) -> Tensor:
    """The number of batches that a batch norm which keeps statistics has seen."""
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked
