"""The one training loop, for float networks and for those that quantize themselves while they train.

The loop owns no data, no files and no evaluation: batches come from a function of the epoch, and two callbacks do the rest. What
`on_epoch_end` draws from the random generators is undone, so that the number of variants evaluated never changes a training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qexp.base import dist, preemption
from qexp.base.console import print_main
from qexp.base.progress import track
from qexp.base.types import Batch
from qexp.config.train import TrainSettings
from qexp.engine.hooks import NO_HOOKS, TrainHooks
from qexp.engine.optim import lr_at
from qexp.engine.seed import restore_rank_rng
from qexp.engine.state import FitState
from qexp.engine.trainer import Trainer, move_

if TYPE_CHECKING:
    from torch.distributed import Work

CHECK_EVERY_STEPS = 50  # how often the device is asked whether the loss is still finite; each time costs a synchronization


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """What `fit` passes to its callbacks after an epoch; the same on all ranks.

    Args:
        epoch: 1 to `settings.epochs`.
        model_state: state dict of the network that is evaluated, the bare one or the average of its weights; references to live
            tensors, rank 0's on every rank.
        train_loss: mean training loss over the epoch's images, smoothing, auxiliary heads and distillation included, nats.
        train_prec1: Prec@1 on the images as trained on, percent.
        seconds: of training.
        images_per_s: over all ranks.
        lr: of the epoch's last step.
        state: what a resume needs.
    """

    epoch: int
    model_state: dict[str, Tensor]
    train_loss: float
    train_prec1: float
    seconds: float
    images_per_s: float
    lr: float
    state: FitState


def fit(
    model: nn.Module,
    train_batches: Callable[[int, int], Iterable[Batch]],
    settings: TrainSettings,
    *,
    steps_per_epoch: int,
    device: torch.device,
    start: FitState | None = None,
    on_epoch_end: Callable[[EpochEnd], None] = lambda end: None,
    on_checkpoint: Callable[[FitState, EpochEnd | None], None] = lambda state, end: None,
    hooks: TrainHooks = NO_HOOKS,
    progress: bool = True,
) -> FitState:
    """Train `model` in place, from the beginning or from any state of an earlier run; bit-exact on the CPU either way.

    The loss of a step is the mean over its global batch, however unevenly ranks and micro-batches share it:
    sum_i loss_i / num_global. BN sees the images of one micro-batch on one rank.

    Args:
        model: the bare network; moved to `device`. It is wrapped in DistributedDataParallel where a process group exists.
        train_batches: (epoch, first) -> this rank's slices of the global batches of epoch 1, 2, ..., from batch `first` on.
        settings: the recipe.
        steps_per_epoch: optimizer steps.
        device: where to train.
        start: where to go on; its tensors are taken over.
        on_checkpoint: called on every rank to store a state: every `settings.checkpoint_every_steps` steps and before `Preempted`
            with None, at the end of an epoch with its `EpochEnd`. Signals wait until it returns.
        on_epoch_end: called on every rank after that. It may evaluate `model`, but not change it.
        hooks: what this training does besides; a resume needs the same.
        progress: print a line per epoch.

    Raises:
        DivergenceError: the loss is not finite.
        Preempted: a signal came, to any rank; all ranks have done the same number of steps.
        UserError: the settings ask for what does not exist on this device.
    """
    move_(model, settings, device)
    loop = _Loop(Trainer(model, settings, device, start, hooks), steps_per_epoch, on_checkpoint)
    state = start or loop.trainer.state(0)
    epochs = range(state.epoch + 1, settings.epochs + 1)
    for epoch in track(epochs, "epoch", total=settings.epochs, done=state.epoch):
        batches = track(train_batches(epoch, state.step), "batch", total=steps_per_epoch, done=state.step)
        with preemption.deferred():
            end = loop.epoch(epoch, batches, state)
            on_checkpoint(end.state, end)
        state = end.state
        if progress:
            print_main(
                f"epoch {epoch}/{settings.epochs}  loss {end.train_loss:.4f}  Prec@1 {end.train_prec1:.2f} (train)  "
                f"lr {end.lr:.4g}  {end.seconds:.1f} s  {end.images_per_s:.0f} images/s"
            )
        if int(dist.all_reduce(torch.tensor(int(preemption.requested())), "MAX")):
            raise preemption.stop()
        on_epoch_end(end)
        restore_rank_rng(state.rng, device)
    return state


class _Loop:
    """The steps of an epoch, and what happens between them: checkpoints, and the ranks' agreement to stop."""

    def __init__(
        self, trainer: Trainer, steps_per_epoch: int, on_checkpoint: Callable[[FitState, EpochEnd | None], None]
    ) -> None:
        self.trainer, self.settings = trainer, trainer.settings
        self.steps_per_epoch, self.on_checkpoint = steps_per_epoch, on_checkpoint
        self.vote = _StopVote()

    def epoch(self, epoch: int, batches: Iterable[Batch], start: FitState) -> EpochEnd:
        """What is left of one pass over the training data; leaves rank 0's state on every rank."""
        trainer = self.trainer
        trainer.model.train()
        trainer.hooks.on_epoch_start(epoch)
        began = time.perf_counter() - start.seconds
        images, steps, lr = start.images, start.step, 0.0
        for batch in batches:
            lr = lr_at((epoch - 1) * self.steps_per_epoch + steps, self.steps_per_epoch, self.settings)
            trainer.step(batch, steps, lr)
            images, steps = images + batch.num_global, steps + 1
            if steps % CHECK_EVERY_STEPS == 0:
                trainer.check_finite(epoch)
            if steps < self.steps_per_epoch:
                self._between(epoch, steps, images, began)
        self.vote.settle()
        assert steps == self.steps_per_epoch, f"epoch {epoch} had {steps} batches, not {self.steps_per_epoch}"
        trainer.check_finite(epoch)
        loss, prec1 = trainer.pop_totals(images)
        seconds = time.perf_counter() - began
        trainer.agree()
        state = trainer.state(epoch)
        return EpochEnd(
            epoch=epoch,
            model_state=state.evaluated,
            train_loss=loss,
            train_prec1=prec1,
            seconds=seconds,
            images_per_s=images / seconds,
            lr=lr,
            state=state,
        )

    def _between(self, epoch: int, steps: int, images: int, began: float) -> None:
        """After a step that is not the epoch's last: save if it is time to, or to stop."""
        stop, every = self.vote.cast(), self.settings.checkpoint_every_steps
        if stop or (every is not None and steps % every == 0):
            self.trainer.check_finite(epoch)  # a state that has diverged is no place to go on from
            self.on_checkpoint(self.trainer.state(epoch - 1, steps, images, time.perf_counter() - began), None)
        if stop:
            raise preemption.stop()


class _StopVote:
    """Whether any rank was asked to stop, known to all at the same step.

    Each step begins a reduction of one number on the CPU and reads the one before, which has long arrived: nobody waits.
    """

    def __init__(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Work | None = None

    def cast(self) -> bool:
        """True on every rank, one step after a signal reached any of them."""
        if not dist.is_initialized():
            return preemption.requested()
        stop = self.settle()
        self._flag = torch.tensor([int(preemption.requested())], dtype=torch.int32)
        self._work = dist.all_reduce_max_async(self._flag)
        return stop

    def settle(self) -> bool:
        """Wait for the last vote; returns its outcome."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._flag.item())
