"""Random number generators: seeding them for a job, and keeping their states for an exact resume."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

from qexp.base import dist

_RANK_STRIDE = 1_000_003  # ranks draw different dropout masks


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch on this rank, and choose between fast and bit-reproducible kernels.

    Args:
        seed: 0 to 2**63 - 1. Rank 0 uses it as it is, the others an offset of it.
        deterministic: torch then refuses operations that have no deterministic kernel, by an error that names them.
    """
    own = (seed + _RANK_STRIDE * dist.rank()) % 2**63
    random.seed(own)
    np.random.seed(own % 2**32)  # data sets and networks of users draw from the global generator
    torch.manual_seed(own)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its first handle is made
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def capture_rng(device: torch.device | None = None) -> dict[str, Any]:
    """The states of all generators of this process, as tensors and numbers that `weights_only=True` loads.

    Args:
        device: a cuda device whose generator is in use, if any.
    """
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "name": legacy["bit_generator"],
            "keys": torch.tensor(legacy["state"]["key"].tolist()),
            "position": legacy["state"]["pos"],
            "has_gauss": legacy["has_gauss"],
            "cached": legacy["gauss"],
        },
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Put the generators back to what `capture_rng` returned."""
    torch.set_rng_state(state["torch"].cpu())
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = np.array(numpy["keys"].tolist(), dtype=np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def restore_rank_rng(states: list[dict[str, Any]], device: torch.device | None = None) -> None:
    """Restore this rank's entry of `states`; where their number has changed, continue from rank 0's, told apart by rank."""
    own = dist.rank()
    if len(states) == dist.world_size():
        restore_rng(states[own], device)
        return
    restore_rng(states[0], device)
    if own > 0:
        torch.manual_seed((int(torch.randint(2**62, ())) + _RANK_STRIDE * own) % 2**63)
