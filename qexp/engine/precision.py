"""Arithmetic of forward and backward passes under torch.amp."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from qexp.base.console import print_main
from qexp.config.train import PRECISION_ALIASES, check_precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def amp(precision: str, device: torch.device) -> tuple[Callable[[], AbstractContextManager[None]], torch.amp.GradScaler]:
    """The autocast scope to run a forward pass in, and the gradient scaler (which does nothing except for fp16).

    Says what an apex opt level maps to.

    Args:
        precision: `fp32`, `bf16`, `fp16` or an alias.
        device: where the network is.

    Raises:
        UserError: `train.precision` does not exist on this device.
    """
    check_precision(precision, device.type)
    name = PRECISION_ALIASES.get(precision, precision)
    if name != precision:
        print_main(f"train.precision={precision} (an apex opt level) maps to {name} under torch.amp, with fp32 master weights")
    scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
    if name == "fp32":
        return nullcontext, scaler
    return lambda: torch.autocast(device.type, dtype=_DTYPES[name]), scaler


class InBf16:
    """A network whose forward pass runs in bf16 under `torch.autocast`: images [N, C, H, W] -> what it returns.

    Args:
        model: the network, in fp32.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, images: Tensor) -> object:
        """What the network returns, in bf16 or fp32."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return self.model(images)


def lacks_bf16(device: torch.device) -> bool:
    """True on a CPU that is known to have no instructions for bf16: they are emulated there, many times as slow as fp32."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    known = [has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name]
    return bool(known) and not any(known)
