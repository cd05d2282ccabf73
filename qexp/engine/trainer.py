"""The network as it is trained, step by step: forward, backward, update, and the epoch's running totals."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from qexp.base import dist
from qexp.base.outputs import main_output
from qexp.base.types import Batch
from qexp.config.train import TrainSettings, check_device
from qexp.engine.average import moving_average
from qexp.engine.buffers import buffers_kept
from qexp.engine.hooks import NO_HOOKS, TrainHooks
from qexp.engine.loss import distillation_loss, total_loss
from qexp.engine.optim import make_optimizer, set_lr
from qexp.engine.precision import amp
from qexp.engine.seed import capture_rng, restore_rank_rng
from qexp.engine.state import FitState

_NEVER = 2**62


def move_(network: nn.Module, settings: TrainSettings, device: torch.device) -> nn.Module:
    """Move a network to a device, in the memory format of the recipe; returns it."""
    to: Callable[..., nn.Module] = network.to  # torch's annotations do not know `memory_format`
    return to(device=device, memory_format=torch.channels_last if settings.channels_last else torch.preserve_format)


class DivergenceError(RuntimeError):
    """The loss stopped being finite."""


class Trainer:
    """A network, its optimizer, and the epoch's running totals, which the device is asked for only now and then.

    Args:
        model: the bare network, on `device`; wrapped in DistributedDataParallel where a process group exists.
        settings: the recipe.
        device: where to train.
        start: where to go on; its tensors are taken over.
        hooks: additions to the steps.

    Raises:
        UserError: `train.precision`, `train.optimizer` or `train.sync_bn` does not exist here.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        device: torch.device,
        start: FitState | None,
        hooks: TrainHooks = NO_HOOKS,
    ) -> None:
        self.model, self.settings, self.device, self.hooks = model, settings, device, hooks
        check_device(settings, device.type)
        self.autocast, self.scaler = amp(settings.precision, device)
        if settings.sync_bn and dist.world_size() > 1:
            self.model = model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.optimizer = make_optimizer(model, settings, hooks.weight_decay)
        self.average = None if settings.ema_decay is None else moving_average(model, settings.ema_decay)
        self.reset()
        if start is not None:
            self._restore(start)
        self.ddp: DistributedDataParallel | None = None
        net: Callable[[Tensor], Any] = model
        if dist.is_initialized():
            ids = [device] if device.type == "cuda" else None
            net = self.ddp = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        self.net = torch.compile(net) if settings.compile else net
        self.teacher = self._teacher()

    def _teacher(self) -> Callable[[Tensor], Any] | None:
        """The network to distill from, made ready; None where its weight is 0."""
        teacher = self.hooks.teacher
        if teacher is None or self.hooks.distill_weight == 0:
            return None
        assert not {*self.model.modules()} & {*teacher.modules()}, "a teacher that is trained itself"
        move_(teacher, self.settings, self.device).eval()
        return torch.compile(teacher) if self.settings.compile else teacher

    def _restore(self, start: FitState) -> None:
        """Take over a state; where the number of ranks has changed, rank 0 takes over all totals."""
        self.model.load_state_dict(start.model)
        self.optimizer.load_state_dict(start.optimizer)
        self.scaler.load_state_dict(start.scaler)
        if self.average is not None:
            self.average.load_state_dict(start.averaged)
        restore_rank_rng(start.rng, self.device)
        totals = torch.tensor(start.totals or [[0.0, 0.0]], dtype=torch.float64)
        if len(totals) == dist.world_size():
            self.totals = totals[dist.rank()].tolist()
        elif dist.rank() == 0:
            self.totals = totals.sum(0).tolist()

    def reset(self) -> None:
        """Start the totals afresh."""
        self.totals = [0.0, 0.0]  # summed loss, correct predictions
        self.first_bad = _NEVER  # first step with a loss that is not finite
        self._pending: list[tuple[int, Tensor, Tensor, Tensor]] = []  # step, loss, predictions, labels: not yet in the totals

    def step(self, batch: Batch, number: int, lr: float) -> None:
        """One optimizer step on this rank's slice of a global batch."""
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        if len(batch.labels) > 0:
            self._forward_backward(batch, number)
        else:
            self._join_without_images(batch, number)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.hooks.after_step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def agree(self) -> None:
        """Leave rank 0's network, and its average, on every rank: the statistics of batch norm differ until then."""
        dist.broadcast_state(self.model)
        if self.average is not None:
            dist.broadcast_state(self.average)

    def _forward_backward(self, batch: Batch, number: int, weight: float = 1.0) -> None:
        """Add this slice's share of the gradient, one micro-batch at a time; the ranks sum theirs during the last."""
        images, parts = batch.images, min(self.settings.accumulate, len(batch.labels))
        # DistributedDataParallel divides the sum over ranks by their number.
        scale = weight * dist.world_size() / batch.num_global
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        others = batch.labels if batch.mixed_with is None else batch.mixed_with
        micro = zip(*(tensor.tensor_split(parts) for tensor in (images, batch.labels, others)), strict=True)
        for part, (x, y, other) in enumerate(micro, 1):
            with self.ddp.no_sync() if self.ddp is not None and part < parts else nullcontext():
                with self.autocast():
                    output = self.net(x)
                    loss = self._loss(output, x, y, other, batch.share)
                self.scaler.scale(loss * scale).backward()
            if weight > 0:
                self._count(loss.detach(), main_output(output).detach(), y if batch.share >= 0.5 else other, number)

    def _loss(self, output: Any, images: Tensor, labels: Tensor, others: Tensor, share: float) -> Tensor:
        """Summed over the images, nats: cross-entropy of all heads, mixed with the main head's distance to a teacher."""
        loss = total_loss(output, lambda logits: self._cross_entropy(logits, labels))
        if share < 1:
            loss = share * loss + (1 - share) * total_loss(output, lambda logits: self._cross_entropy(logits, others))
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = main_output(self.teacher(images))
        share = self.hooks.distill_weight
        distance = distillation_loss(main_output(output), wanted, self.hooks.distill_temperature)
        return (1 - share) * loss + share * distance

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=self.settings.label_smoothing)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor, number: int) -> None:
        """Remember for the totals, without waiting for the device."""
        self._pending.append((number, loss, logits.argmax(1), labels))

    def _drain(self) -> None:
        """Bring the totals up to date; step by step, so that they do not depend on how often this is done."""
        if not self._pending:
            return
        numbers, losses, predicted, labels = zip(*self._pending, strict=True)
        self._pending = []
        for number, loss in zip(numbers, torch.stack(losses).tolist(), strict=True):
            self.totals[0] += loss
            if not math.isfinite(loss):
                self.first_bad = min(self.first_bad, number)
        self.totals[1] += int((torch.cat(predicted) == torch.cat(labels)).sum())

    def _join_without_images(self, batch: Batch, number: int) -> None:
        """Take part in the ranks' exchange with a gradient of zero; blank images run, and leave no trace in the buffers."""
        with buffers_kept(self.model):
            blank = batch.images.new_zeros(2, *batch.images.shape[1:])
            zeros = batch.labels.new_zeros(2)
            self._forward_backward(Batch(blank, zeros, zeros, batch.num_global), number, weight=0.0)

    def check_finite(self, epoch: int) -> None:
        """Raise on all ranks if the loss was not finite on any."""
        self._drain()
        step = int(dist.all_reduce(torch.tensor(self.first_bad), "MIN"))
        if step < _NEVER:
            raise DivergenceError(
                f"Training diverged: the loss is not finite at epoch {epoch}, step {step + 1}. "
                f"Lower train.lr={self.settings.lr:g}, or raise train.warmup_epochs={self.settings.warmup_epochs}."
            )

    def pop_totals(self, images: int) -> tuple[float, float]:
        """Mean loss and Prec@1 over the epoch's images on all ranks; starts afresh."""
        loss, correct = dist.all_reduce(torch.tensor(self.totals, dtype=torch.float64), "SUM").tolist()
        self.reset()
        return loss / images, 100 * correct / images

    def state(self, epoch: int, step: int = 0, images: int = 0, seconds: float = 0.0) -> FitState:
        """References to all that a resume needs; a collective."""
        self._drain()
        of_ranks = dist.all_gather_object({"rng": capture_rng(self.device), "totals": self.totals})
        return FitState(
            epoch=epoch,
            step=step,
            model=dict(self.model.state_dict()),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            rng=[state["rng"] for state in of_ranks],
            totals=[state["totals"] for state in of_ranks],
            images=images,
            seconds=seconds,
            averaged={} if self.average is None else dict(self.average.state_dict()),
        )
