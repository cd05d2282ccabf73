"""All that an exact resume needs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

_AVERAGED = "module."  # what `torch.optim.swa_utils.AveragedModel` puts before the network's own names


@dataclass(frozen=True, kw_only=True)
class FitState:
    """A training after `epoch` whole epochs and `step` optimizer steps of the next.

    Plain dicts, which `torch.load(weights_only=True)` reads. `fit` hands out references to live tensors: store them before the
    callback returns.

    Args:
        epoch: whole epochs done.
        step: optimizer steps of the epoch after them; 0 between epochs.
        model: state dict of the bare network. Within an epoch its buffers are rank 0's, which is what every rank's next forward
            pass begins with.
        optimizer: its state dict.
        scaler: its state dict.
        rng: one entry per rank, the generators' states.
        totals: one entry per rank, the unfinished epoch's summed loss and correct predictions.
        images: of that epoch so far, over all ranks.
        seconds: spent on it.
        averaged: state dict of the `AveragedModel` where `train.ema_decay` asks for one; else empty.
    """

    epoch: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rng: list[dict[str, Any]]
    step: int = 0
    totals: list[list[float]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    averaged: dict[str, Any] = field(default_factory=dict)

    @property
    def evaluated(self) -> dict[str, Any]:
        """State dict of the network that is evaluated and kept: the average of the weights where there is one."""
        if not self.averaged:
            return self.model
        return {name.removeprefix(_AVERAGED): value for name, value in self.averaged.items() if name.startswith(_AVERAGED)}

    @property
    def place(self) -> str:
        """Where it is, as the progress line counts epochs and batches."""
        return f"in epoch {self.epoch + 1}, after batch {self.step}" if self.step else f"after epoch {self.epoch}"

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, not copied."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
