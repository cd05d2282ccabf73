"""The optimizer and the learning rate as a pure function of the step, so that a resume needs no scheduler object."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from qexp.config.train import TrainSettings

_FUSED_DEVICES = ("cpu", "cuda")


def make_optimizer(
    model: nn.Module, settings: TrainSettings, own_decay: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over the parameters that want gradients, in one fused kernel where the device has one.

    Weight decay applies to all of them, biases and BN's scale and shift included: the recipe of the ResNet paper and of
    torchvision's reference trainings, whose numbers are compared with.

    Args:
        model: on its device.
        settings: the recipe.
        own_decay: parameter name -> its own weight decay. With any, there is one group per decay, in the order of the network.

    Source: He et al. 2016, Deep Residual Learning for Image Recognition, section 3.4; Loshchilov and Hutter 2019, algorithm 2.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert parameters, "a network without trainable parameters"
    groups = _by_decay(model, settings.weight_decay, own_decay) if own_decay else parameters
    fused = all(parameter.device.type in _FUSED_DEVICES and parameter.is_floating_point() for parameter in parameters)
    if settings.optimizer == "adamw":
        first, second = settings.betas
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), weight_decay=settings.weight_decay, fused=fused)
    build: Callable[..., torch.optim.Optimizer]
    if settings.optimizer == "apex_fused_sgd":
        build = importlib.import_module("apex.optimizers").FusedSGD  # only NVIDIA's container has it
    else:
        build = partial(torch.optim.SGD, fused=fused)
    return build(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def _by_decay(model: nn.Module, usual: float, own: Mapping[str, float]) -> list[dict[str, object]]:
    """Parameter groups; a parameter with several names may be meant by any of them."""
    names = dict(model.named_parameters(remove_duplicate=False))
    assert own.keys() <= names.keys(), f"weight decay for unknown parameters {sorted(own.keys() - names.keys())}"
    decays = {id(names[name]): decay for name, decay in own.items()}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(decays.get(id(parameter), usual), []).append(parameter)
    return [{"params": members, "weight_decay": decay} for decay, members in groups.items()]


def lr_at(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Learning rate of optimizer step `step`.

    Warm-up of W steps: lr (step + 1) / W. After it, with t = (step - W) / (T - W) over T steps in all: `cosine` lr (1 + cos(pi
    t)) / 2, `step` lr gamma^(milestones passed, in epochs since the start), `constant` lr.

    Args:
        step: 0 at the start of the training.
        steps_per_epoch: optimizer steps.
        settings: schedule and warm-up.

    Source: Goyal et al. 2017 (warm-up), Loshchilov and Hutter 2017, eq. 5 (cosine).
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    total = settings.epochs * steps_per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    if settings.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in settings.milestones or ())
        return settings.lr * settings.gamma**passed
    return settings.lr


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
