"""Settings of the training loop, the evaluation and the trajectory store; torch-free."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from qexp.base.checks import Count, Epochs, Natural, NotNegative, Positive, Share, check_bounds, check_range
from qexp.base.compiler import cxx_compiler
from qexp.base.errors import UserError
from qexp.config.later import later
from qexp.config.metrics import asked
from qexp.config.read_where import ReadWhere

SGD = ("sgd", "apex_fused_sgd")  # optimizers with a momentum

# apex's opt levels, which its users still type; apex.amp itself was removed upstream in May 2025.
PRECISION_ALIASES = {"O0": "fp32", "O1": "fp16", "O2": "fp16", "O3": "fp16"}


def check_precision(precision: str, device_type: str) -> None:
    """Raise where `train.precision` cannot run on a device (`cpu` or `cuda`)."""
    if PRECISION_ALIASES.get(precision, precision) == "fp16" and device_type == "cpu":
        what = "fp16" if precision == "fp16" else f"{precision} is fp16, which"
        raise UserError("train.precision", precision, allowed="fp32 or bf16 on the CPU", remedy=f"{what} needs device=cuda.")


def check_device(train: TrainSettings, device_type: str) -> None:
    """Raise where a training asks for what a device (`cpu` or `cuda`) or this installation does not have."""
    check_precision(train.precision, device_type)
    if train.compile and device_type == "cpu" and cxx_compiler() is None:
        remedy = "Install one (apt install g++), or name it in CXX."
        raise UserError("train.compile", True, allowed="false without a C++ compiler", remedy=remedy)
    if train.sync_bn and device_type == "cpu":
        raise UserError("train.sync_bn", True, allowed="false on the CPU", remedy="torch's SyncBatchNorm runs on GPUs only.")
    if train.optimizer == "apex_fused_sgd":
        if device_type == "cpu":
            raise UserError("train.optimizer", train.optimizer, allowed="sgd on the CPU", remedy="apex needs device=cuda.")
        if importlib.util.find_spec("apex") is None:
            remedy = "apex is not installed; NVIDIA's PyTorch container has it."
            raise UserError("train.optimizer", train.optimizer, allowed="sgd here", remedy=remedy)


BATCH_SIZES = (50, 100, 250)  # that `evaluate.batch_size=null` tries


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training; all of this is part of its hash, but for `checkpoint_every_steps`.

    Args:
        epochs: passes over the train split.
        lr: peak learning rate.
        batch_size: images per optimizer step, over all ranks and accumulation steps.
        optimizer: `sgd`; `apex_fused_sgd`, the same update in apex's kernel where apex is installed; `adamw`, Adam with decoupled
            weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).
        momentum: of SGD.
        nesterov: Nesterov's form of the momentum.
        weight_decay: of all parameters.
        betas: of AdamW, decay of the running means of gradients and of their squares.
        schedule: how lr falls.
        warmup_epochs: linear rise of lr from 0 at the start.
        milestones: epochs at which `step` multiplies lr by gamma.
        gamma: factor of the schedule `step`.
        label_smoothing: 0 to 1.
        accumulate: forward-backward passes per optimizer step.
        precision: arithmetic of forward and backward under `torch.amp`; master weights stay fp32. `O0`..`O3` are aliases.
        channels_last: memory format of images and weights.
        compile: wrap the network in `torch.compile`; on the CPU it needs a C++ compiler.
        sync_bn: batch statistics over the images of all ranks (GPUs only).
        checkpoint_every_steps: store what a resume needs within an epoch too; None only at its end.
        ema_decay: d of the exponential moving average a <- d_t a + (1 - d_t) w of weights and of batch norm's statistics after
            each step t = 1, 2, ..., d_t = min(d, (1 + t) / (10 + t)); every epoch's average is what is stored, evaluated and
            quantized. None: the weights themselves. A quantization-aware training has none, but the float one it begins from.
        mixup: alpha of mixup: each step's images become l x + (1 - l) x' of pairs, labels likewise, with l ~ Beta(alpha, alpha)
            drawn for the step (Zhang et al. 2018, arXiv:1710.09412); partners are of one rank's share. 0 mixes nothing.
        randaugment: magnitude, 0 to 30, of torchvision's RandAugment with two operations for each image, behind the crop of
            `data.augment` and before its mirroring (Cubuk et al. 2020, arXiv:1909.13719); None is without it.
    """

    epochs: Epochs
    lr: Positive
    batch_size: Count
    optimizer: Literal["sgd", "apex_fused_sgd", "adamw"] = "sgd"
    momentum: Annotated[Share, ReadWhere("optimizer", SGD)] = 0.9
    nesterov: Annotated[bool, ReadWhere("optimizer", SGD)] = True
    weight_decay: NotNegative = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: Natural = 0
    milestones: Annotated[list[int] | None, ReadWhere("schedule", "step")] = None
    gamma: Annotated[Share, ReadWhere("schedule", "step")] = 0.1
    label_smoothing: Share = 0.0
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16", "O0", "O1", "O2", "O3"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    sync_bn: bool = False
    checkpoint_every_steps: Count | None = None
    betas: Annotated[list[Share], ReadWhere("optimizer", "adamw")] = later([0.9, 0.999])
    ema_decay: Share | None = later(None)
    mixup: NotNegative = later(0.0)
    randaugment: Annotated[int, Ge(0), Le(30)] | None = later(None)

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "train")
        check_range("train.accumulate", self.accumulate, 1, self.batch_size)
        if len(self.betas) != 2 or max(self.betas) >= 1:
            raise UserError("train.betas", self.betas, allowed="two numbers, each at least 0 and below 1")
        if self.ema_decay == 1:
            raise UserError("train.ema_decay", 1.0, allowed="below 1", remedy="The average would stay where it began.")
        if self.optimizer in SGD and self.nesterov and self.momentum == 0:
            raise UserError("train.nesterov", True, allowed="false where train.momentum=0")
        if self.warmup_epochs > self.epochs:
            raise UserError("train.warmup_epochs", self.warmup_epochs, allowed=f"at most train.epochs={self.epochs}")
        if self.schedule == "step" and not self.milestones:
            raise UserError("train.milestones", self.milestones, allowed="a list of epochs, for train.schedule=step")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """One evaluation.

    Args:
        split: the split that is scored.
        num_images: only the first so many images of the split.
        batch_size: images per forward pass; null: 50, 100 or 250, whichever a short measurement finds fastest for the engine and
            within memory. It is in the record of each number, whose last bits may hang on it, and in no key.
        keep: epochs whose per-image predictions stay on disk.
        memory_mib: budget for quantized copies held at once over a streamed set, MiB.
        metrics: what is measured beside what every evaluation has: names of `qexp.config.metrics`, or `FILE.py:FUNCTION`s that
            return a row of that kind. What the others are does not hang on it.
        across: `preprocessing` lets a report compare rows image by image although the same files became other pixels in them.
        engine: how networks run: `eager`, exact; `compiled`, one program for all variants of one graph, whose logits differ in
            their last bits, as sums have another order; `auto`, compiled where that is found to pay. Each has numbers of its own.
        precision: arithmetic of the forward passes that are scored: `bf16` is torch.autocast's, for a quick look where a GPU
            or processor has it, with float activations alone, as steps of quantized ones are finer. Its numbers are marked.
        until: `decided` stops scoring a variant when its comparison with the float network is decided, by a sequential test that
            looks after each batch of images in an order that was drawn. Its row says how many images it took.
        margin: loss that the test is of, points; None: it is of any difference.
    """

    split: Literal["test", "select", "calib", "train"] = "test"
    num_images: Count | None = None
    batch_size: Count | None = 100
    keep: Literal["last", "all", "none"] = "last"
    memory_mib: Count = 4096
    metrics: list[str] = later([])
    across: Literal["preprocessing"] | None = later(None)
    engine: Literal["eager", "auto", "compiled"] = later("eager")
    precision: Literal["fp32", "bf16"] = later("fp32")
    until: Literal["decided"] | None = later(None)
    margin: Annotated[Annotated[float, Gt(0.0), Le(50.0)] | None, ReadWhere("until", "decided")] = later(0.5)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_bounds(self, "evaluate")
        if self.until is not None and self.across is not None:
            remedy = "Rows are compared image by image, and each would have other images."
            raise UserError("evaluate.until", self.until, allowed="null with evaluate.across", remedy=remedy)
        if self.precision == "bf16" and self.engine != "eager":
            remedy = "Programs are held against their networks' fp32 logits."
            raise UserError("evaluate.engine", self.engine, allowed="eager with evaluate.precision=bf16", remedy=remedy)
        if self.until is not None and self.batch_size is None:
            remedy = "Its test looks after each batch: another size stops it elsewhere."
            raise UserError("evaluate.batch_size", None, allowed="an integer with evaluate.until", remedy=remedy)
        made_later = [row.name for row in asked(self.metrics) if not row.in_record]
        if made_later and self.keep == "none":
            allowed = f"last or all with {', '.join(made_later)} among evaluate.metrics"
            raise UserError("evaluate.keep", self.keep, allowed=allowed, remedy="They are made of stored predictions.")

    @property
    def batch_images(self) -> int:
        """Images per forward pass; where a measurement decides, the fewest that it tries."""
        return self.batch_size or BATCH_SIZES[0]


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings:
    """Which epochs of a training stay on disk.

    Args:
        keep: `all`, `every:K` (and the last) or `last`.
    """

    keep: str = "all"

    def __post_init__(self) -> None:
        """Check the form."""
        if not re.fullmatch(r"all|last|every:[1-9]\d*", self.keep):
            raise UserError("trajectory.keep", self.keep, allowed="all, last or every:K with K of at least 1")

    def keeps(self, epoch: int, epochs: int) -> bool:
        """True if the weights after `epoch` (1 to `epochs`) stay on disk."""
        if epoch == epochs or self.keep == "all":
            return True
        return self.keep.startswith("every:") and epoch % int(self.keep.split(":")[1]) == 0
