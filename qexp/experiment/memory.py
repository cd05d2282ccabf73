"""How much memory an evaluation takes, told before it starts and refused where this machine has less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.memory import memory_limit_bytes
from qexp.config.root import Config
from qexp.nn.memory import forward_bytes

if TYPE_CHECKING:
    from qexp.data.bundle import DataBundle

_PROCESS = 2**29  # torch and what else is imported, before any image
_COPIES = 4  # of a network's state: as loaded, as evaluated, folded and quantized


def evaluation_bytes(config: Config, model: nn.Module, bundle: DataBundle) -> int:
    """Memory of an evaluation on a CPU, about: the process, copies of the network, activations of one batch; data not counted.

    Args:
        config: whose `evaluate`.
        model: the network.
        bundle: the data.
    """
    return _fixed_bytes(model) + _batch(config, bundle) * forward_bytes(model, torch.zeros(1, *bundle.image_shape))


def check_memory(config: Config, model: nn.Module, bundle: DataBundle) -> None:
    """Raise UserError where an evaluation takes more memory than this machine has.

    Args:
        config: of the job, to be evaluated on the CPU.
        model: the network.
        bundle: the data.
    """
    needed, limit = evaluation_bytes(config, model, bundle), memory_limit_bytes()
    if needed <= limit:
        return
    batch, fixed = _batch(config, bundle), _fixed_bytes(model)
    fits = int(batch * (limit - fixed) / (needed - fixed)) if limit > fixed else 0
    remedy = f"evaluate.batch_size={fits} fits." if fits else "Not one image fits: take a smaller network or another machine."
    takes = f"{batch} images at a time take about {_gib(needed)} of memory, and this machine has {_gib(limit)}"
    raise UserError("evaluate.batch_size", config.evaluate.batch_size, allowed=f"a batch that fits; {takes}", remedy=remedy)


def fitting(sizes: Sequence[int], model: nn.Module, image_shape: Sequence[int]) -> list[int]:
    """The batch sizes whose evaluation this machine's memory holds.

    Args:
        sizes: images of a batch.
        model: the network, on the CPU.
        image_shape: (C, H, W).
    """
    each = forward_bytes(model, torch.zeros(1, *image_shape))
    return [size for size in sizes if _fixed_bytes(model) + size * each <= memory_limit_bytes()]


def _batch(config: Config, bundle: DataBundle) -> int:
    """Images of the largest batch."""
    num_images = config.evaluate.num_images or bundle.split_sizes[config.evaluate.split]
    return min(config.evaluate.batch_images, num_images, bundle.split_sizes[config.evaluate.split])


def _fixed_bytes(model: nn.Module) -> int:
    state = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return _PROCESS + _COPIES * state


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
