"""The weights of an epoch on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.files import check_readable, write_atomic


def save(path: Path, state: Mapping[str, object]) -> None:
    """Write a state dict as safetensors, atomically."""
    weights = _separate(state)
    write_atomic(path, lambda partial: save_file(weights, partial))


def is_whole(path: Path) -> bool:
    """True if the file is there and as long as its header says; raises where it may not be read."""
    check_readable(path)
    try:
        with safe_open(path, framework="pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


def _separate(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no storage, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError("model", name, allowed="a network whose state dict holds tensors only")
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result
