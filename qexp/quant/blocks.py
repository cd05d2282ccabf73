"""Running a chain of elementwise steps over a tensor block by block, so that all steps but the first find their data in cache.

Legend: A elements before the channel axis in memory order, C channels, B elements after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Elements per block and thread on the CPU, 256 KiB of float32 for each of source and target: two such fit a second-level cache of
# 1 MiB. Smaller blocks cost more in operator calls than they save in cache misses.
BLOCK = 1 << 16


def in_blocks(
    kernel: Callable[..., None],
    source: Tensor,
    target: Tensor,
    params: Sequence[Tensor | float],
    axis: int | None,
    block: int | None = None,
) -> None:
    """Call `kernel(source_block, target_block, *params)` until `target` is filled.

    Args:
        kernel: elementwise; writes its second argument from its first, which may be the same memory.
        source: any dtype, layout and device; the kernel sees float32.
        target: likewise, of equal shape.
        params: numbers, 0-d tensors, or [C] tensors that the kernel gets broadcastable to its block.
        axis: channel axis of the [C] tensors.
        block: elements per block; by default `BLOCK` for each thread on the CPU, and everything at once on a GPU.
    """
    source = source.float()
    order = memory_order(source)
    if order is None:
        source = source.contiguous()
        order = tuple(range(source.dim()))
    fits = target.dtype == torch.float32 and target.device == source.device and target.permute(order).is_contiguous()
    work = target if fits else torch.empty_like(source)
    size = block or (BLOCK * torch.get_num_threads() if source.device.type == "cpu" else source.numel())
    position = None if axis is None or source.dim() == 0 else order.index(axis % source.dim())
    _run(kernel, source.permute(order), work.permute(order), params, position, size)
    if not fits:
        target.copy_(work)


def _run(
    kernel: Callable[..., None],
    source: Tensor,
    work: Tensor,
    params: Sequence[Tensor | float],
    position: int | None,
    size: int,
) -> None:
    """`in_blocks` for two contiguous tensors with the channels at dimension `position`: [A, C, B], or [C, B] cut along C."""
    by_channel = [isinstance(param, Tensor) and param.dim() == 1 for param in params]
    if position is None or not any(by_channel):
        shape, along_channels = (-1,), False
    else:
        before, channels = source.shape[:position].numel(), source.shape[position]
        along_channels = before == 1
        shape = (channels, -1) if along_channels else (before, channels, -1)
    source, work = source.view(shape), work.view(shape)
    rows = max(1, size // source[0].numel())
    columns = [param.reshape(-1, 1) if split else param for param, split in zip(params, by_channel, strict=True)]
    for start in range(0, source.shape[0], rows):
        cut = slice(start, start + rows)
        args = [column[cut] if split and along_channels else column for column, split in zip(columns, by_channel, strict=True)]
        kernel(source[cut], work[cut], *args)


def memory_order(x: Tensor) -> tuple[int, ...] | None:
    """The permutation of dimensions that makes x contiguous, or None where x has gaps or overlaps in memory.

    >>> memory_order(torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last))
    (0, 2, 3, 1)
    """
    order = tuple(sorted(range(x.dim()), key=lambda dim: -x.stride(dim)))
    return order if x.permute(order).is_contiguous() else None
