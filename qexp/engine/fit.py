"""The one training loop, for float networks and for those that quantize themselves while they train.

The loop owns no data, no files and no evaluation: batches come from a function of the epoch, and `on_epoch_end` does the rest.
What that callback draws from the random generators is undone, so that the number of variants evaluated never changes a training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from qexp.base import dist
from qexp.base.console import say
from qexp.base.nouns import Batch
from qexp.engine.loss import total_loss
from qexp.engine.optim import lr_at, make_optimizer, set_lr
from qexp.engine.precision import amp
from qexp.engine.progress import track
from qexp.engine.seed import capture_rng, restore_rank_rng
from qexp.engine.settings import TrainSettings
from qexp.models.outputs import main_output

CHECK_EVERY_STEPS = 50  # how often the device is asked whether the loss is still finite; each time costs a synchronization
_NEVER = 2**62


class DivergenceError(RuntimeError):
    """The loss stopped being finite."""


@dataclass(frozen=True, kw_only=True)
class FitState:
    """All that an exact resume needs after `epoch` epochs, in plain dicts that `torch.load(weights_only=True)` reads.

    `fit` hands out references to live tensors: store them before the callback returns. `rng` has one entry per rank.
    """

    epoch: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rng: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, not copied."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """What `fit` tells after an epoch; all ranks hear the same.

    Args:
        epoch: 1 to `settings.epochs`. model_state: state dict of the bare network, references to live tensors, rank 0's on
            every rank.
        train_loss: mean training loss over the epoch's images, smoothing and auxiliary heads included, nats.
        train_prec1: Prec@1 on the images as trained on, percent. seconds: of training. images_per_s: over all ranks.
        lr: of the epoch's last step. state: what a resume needs.
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
    train_batches: Callable[[int], Iterable[Batch]],
    settings: TrainSettings,
    *,
    steps_per_epoch: int,
    device: torch.device,
    start: FitState | None = None,
    on_epoch_end: Callable[[EpochEnd], None] = lambda end: None,
    progress: bool = True,
) -> FitState:
    """Train `model` in place, from the beginning or from the end of an epoch; bit-exact on the CPU either way.

    The loss of a step is the mean over its global batch, however unevenly ranks and micro-batches share it:
    sum_i loss_i / num_global. BN sees the images of one micro-batch on one rank.

    Args:
        model: the bare network; moved to `device`. It is wrapped in DistributedDataParallel where a process group exists.
        train_batches: epoch (1, 2, ...) -> this rank's slices of its `steps_per_epoch` global batches.
        settings: the recipe.
        steps_per_epoch: optimizer steps.
        device: where to train.
        start: where to go on; its tensors are taken over.
        on_epoch_end: called on every rank after each epoch. It may evaluate `model`, but not change it.
        progress: show where it is, and a line per epoch.

    Raises:
        DivergenceError: the loss is not finite.
        UserError: `train.precision` does not exist on this device.
    """
    model.to(device=device, memory_format=torch.channels_last if settings.channels_last else torch.preserve_format)
    trainer = _Trainer(model, settings, device, start)
    state = start or trainer.state(0)
    for epoch in range(state.epoch + 1, settings.epochs + 1):
        label = f"epoch {epoch}/{settings.epochs}"
        batches = track(train_batches(epoch), label=label, total=steps_per_epoch, enabled=progress)
        end = trainer.epoch(epoch, batches, steps_per_epoch)
        state = end.state
        if progress:
            say(
                f"{label}  loss {end.train_loss:.4f}  Prec@1 {end.train_prec1:.2f} (train)  lr {end.lr:.4g}  "
                f"{end.seconds:.1f} s  {end.images_per_s:.0f} images/s"
            )
        on_epoch_end(end)
        restore_rank_rng(state.rng, device)
    return state


class _Trainer:
    """The network as it is trained, its optimizer, and the epoch's running totals, kept on the device."""

    def __init__(self, model: nn.Module, settings: TrainSettings, device: torch.device, start: FitState | None) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.autocast, self.scaler = amp(settings.precision, device)
        self.optimizer = make_optimizer(model, settings)
        if start is not None:
            model.load_state_dict(start.model)
            self.optimizer.load_state_dict(start.optimizer)
            self.scaler.load_state_dict(start.scaler)
            restore_rank_rng(start.rng, device)
        self.ddp: DistributedDataParallel | None = None
        net: Callable[[Tensor], Any] = model
        if dist.is_initialized():
            ids = [device] if device.type == "cuda" else None
            net = self.ddp = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        self.net = torch.compile(net) if settings.compile else net
        self._reset()

    def _reset(self) -> None:
        self.totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # summed loss, correct predictions
        self.first_bad = torch.tensor(_NEVER, device=self.device)  # first step with a loss that is not finite

    def epoch(self, epoch: int, batches: Iterable[Batch], steps_per_epoch: int) -> EpochEnd:
        """One pass over the training data; leaves rank 0's state on every rank."""
        self.model.train()
        began, images, steps, lr = time.perf_counter(), 0, 0, 0.0
        for batch in batches:
            lr = lr_at((epoch - 1) * steps_per_epoch + steps, steps_per_epoch, self.settings)
            self.step(batch, steps, lr)
            images, steps = images + batch.num_global, steps + 1
            if steps % CHECK_EVERY_STEPS == 0:
                self.check_finite(epoch)
        assert steps == steps_per_epoch, f"epoch {epoch} had {steps} batches, not {steps_per_epoch}"
        self.check_finite(epoch)
        loss, prec1 = self.pop_totals(images)
        seconds = time.perf_counter() - began
        dist.broadcast_state(self.model)
        state = self.state(epoch)
        return EpochEnd(
            epoch=epoch,
            model_state=state.model,
            train_loss=loss,
            train_prec1=prec1,
            seconds=seconds,
            images_per_s=images / seconds,
            lr=lr,
            state=state,
        )

    def step(self, batch: Batch, number: int, lr: float) -> None:
        """One optimizer step on this rank's slice of a global batch."""
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        if len(batch.labels) > 0:
            self._forward_backward(batch.images, batch.labels, batch.num_global, number)
        else:
            self._join_without_images(batch, number)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _forward_backward(self, images: Tensor, labels: Tensor, num_global: int, number: int, weight: float = 1.0) -> None:
        """Add this slice's share of the gradient, one micro-batch at a time; the ranks sum theirs during the last."""
        parts = min(self.settings.accumulate, len(labels))
        # DistributedDataParallel divides the sum over ranks by their number.
        scale = weight * dist.world_size() / num_global
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        for part, (x, y) in enumerate(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True), 1):
            with self.ddp.no_sync() if self.ddp is not None and part < parts else nullcontext():
                with self.autocast():
                    output = self.net(x)
                    loss = total_loss(output, lambda logits, y=y: self._loss(logits, y))
                self.scaler.scale(loss * scale).backward()
            if weight > 0:
                self._count(loss.detach(), main_output(output).detach(), y, number)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the images, nats."""
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=self.settings.label_smoothing)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor, number: int) -> None:
        """Add to the totals without waiting for the device."""
        self.totals += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
        self.first_bad.clamp_(max=torch.where(loss.isfinite(), _NEVER, number))

    def _join_without_images(self, batch: Batch, number: int) -> None:
        """Take part in the ranks' exchange with a gradient of zero; blank images run, and leave no trace in the buffers."""
        with _buffers_kept(self.model):
            blank = batch.images.new_zeros(2, *batch.images.shape[1:])
            self._forward_backward(blank, batch.labels.new_zeros(2), batch.num_global, number, weight=0.0)

    def check_finite(self, epoch: int) -> None:
        """Raise on all ranks if the loss was not finite on any."""
        step = int(dist.all_reduce_min(self.first_bad.clone()))
        if step < _NEVER:
            raise DivergenceError(
                f"Training diverged: the loss is not finite at epoch {epoch}, step {step + 1}. "
                f"Lower train.lr={self.settings.lr:g}, or raise train.warmup_epochs={self.settings.warmup_epochs}."
            )

    def pop_totals(self, images: int) -> tuple[float, float]:
        """Mean loss and Prec@1 over the epoch's images on all ranks; starts afresh."""
        loss, correct = dist.all_reduce_sum(self.totals).tolist()
        self._reset()
        return loss / images, 100 * correct / images

    def state(self, epoch: int) -> FitState:
        """References to all that a resume needs."""
        return FitState(
            epoch=epoch,
            model=dict(self.model.state_dict()),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            rng=dist.all_gather_object(capture_rng(self.device)),
        )


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the buffers back afterwards."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in kept:
        buffer.copy_(value)
