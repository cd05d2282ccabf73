"""The device that a rank computes on."""

from __future__ import annotations

import torch

from qexp.base import dist
from qexp.base.errors import UserError


def pick_device(wanted: str) -> torch.device:
    """The device of this rank: `auto` takes the GPU of its local rank where there is one.

    Raises:
        UserError: a GPU is asked for and torch sees none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device", wanted, allowed="cpu here", remedy="This torch sees no GPU.")
    if wanted == "cuda":
        wanted = f"cuda:{dist.local_rank() % torch.cuda.device_count()}"
    return torch.device(wanted)
