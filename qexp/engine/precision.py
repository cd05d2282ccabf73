"""Arithmetic of forward and backward under torch.amp."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

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
