"""What a caller may add to a training: the loop calls it and does not depend on its purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn


def _nothing(*_: object) -> None:
    """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainHooks:
    """Additions to `fit`; without any, a training is what the recipe says.

    A resume is exact as long as the two callbacks are functions of the epoch and of the network's state dict. They must look
    modules up when they are called: `train.sync_bn` replaces batch norms.

    Args:
        weight_decay: parameter name -> its own weight decay instead of the recipe's.
        on_epoch_start: called on every rank with the epoch's number after `model.train()`, at the beginning of an epoch and when
            one is resumed in its middle. It may set modes, but not choose which parameters train.
        after_step: called on every rank after each optimizer step, also after one that fp16's gradient scaler skipped.
        teacher: a network to distill from; shares nothing with the one that is trained. It is moved to the device and set to
            eval mode.
        distill_weight: w of the loss (1 - w) cross-entropy + w T^2 KL(teacher || student), 0 to 1.
        distill_temperature: T, more than 0; the logits of both are divided by it.

    Source: Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, section 2 (arXiv:1503.02531).
    """

    weight_decay: Mapping[str, float] = field(default_factory=dict)
    on_epoch_start: Callable[[int], None] = _nothing
    after_step: Callable[[], None] = _nothing
    teacher: nn.Module | None = None
    distill_weight: float = 0.0
    distill_temperature: float = 1.0

    def __post_init__(self) -> None:
        """Hold what the settings have checked."""
        assert 0 <= self.distill_weight <= 1 and self.distill_temperature > 0, "distillation out of range"
        assert self.teacher is not None or self.distill_weight == 0, "distillation without a teacher"


NO_HOOKS = TrainHooks()
