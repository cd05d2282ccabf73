"""Running a chain of elementwise steps over a tensor block by block, so that all steps but the first find their data in cache.

Legend: A elements before the channel axis in memory order, C channels, B elements after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from qexp.quant.uniform import UniformKernel, run_uniform

# Elements per block and thread on the CPU, 2 MiB of float32 for each of source and target: they stay in second and third level
# cache. Smaller blocks cost more in operator calls and thread barriers than they save, above all while other programs run.
BLOCK = 1 << 19


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
        kernel: elementwise; writes its second argument from its first, which may be the same memory. A `UniformKernel` may run
            compiled, at once.
        source: any dtype, layout and device; the kernel sees float32.
        target: likewise, of equal shape.
        params: numbers, 0-d tensors, or [C] tensors that the kernel gets broadcastable to its block.
        axis: channel axis of the [C] tensors.
        block: elements per block; by default `BLOCK` for each thread on the CPU, and everything at once on a GPU.
    """
    source = source.float()
    if not (source.is_contiguous() and target.is_contiguous()):
        order = memory_order(source)
        if order is None:
            source, order = source.contiguous(), tuple(range(source.dim()))
        axis = None if axis is None else order.index(axis % source.dim())
        # From here on in memory order: contiguous, the target too unless its layout differs.
        source, target = source.permute(order), target.permute(order)
    fits = target.is_contiguous() and target.dtype == torch.float32 and target.device == source.device
    work = target if fits else torch.empty_like(source)
    blocks = partial(_run, kernel, source, work, params, axis, block or _default_block(source))
    if isinstance(kernel, UniformKernel):
        run_uniform(kernel, source, work, params, axis, blocks)
    else:
        blocks()
    if not fits:
        target.copy_(work)


def _default_block(x: Tensor) -> int:
    return BLOCK * torch.get_num_threads() if x.device.type == "cpu" else x.numel()


def _run(
    kernel: Callable[..., None],
    source: Tensor,
    work: Tensor,
    params: Sequence[Tensor | float],
    axis: int | None,
    size: int,
) -> None:
    """`in_blocks` for two contiguous tensors: seen as [A, C, B], or as [C, B] and cut along C where A is 1."""
    if axis is None:
        if source.numel() <= size:
            kernel(source, work, *params)
        else:
            for x, out in zip(source.view(-1).split(size), work.view(-1).split(size), strict=True):
                kernel(x, out, *params)
        return
    channels, before = source.shape[axis], source.shape[:axis].numel()
    shape = (channels, -1) if before == 1 else (before, channels, -1)
    source, work = source.view(shape), work.view(shape)
    rows = max(1, size // source[0].numel())
    starts = range(0, source.shape[0], rows)
    columns = [param.reshape(-1, 1) if isinstance(param, Tensor) and param.dim() else param for param in params]
    # Along C, each block takes its channels' rows of the columns; along A, every block takes all channels.
    cuts = [
        column.split(rows) if before == 1 and isinstance(column, Tensor) and column.dim() else [column] * len(starts)
        for column in columns
    ]
    for x, out, *block_params in zip(source.split(rows), work.split(rows), *cuts, strict=True):
        kernel(x, out, *block_params)


def memory_order(x: Tensor) -> tuple[int, ...] | None:
    """The permutation of dimensions that makes x contiguous, or None where x has gaps or overlaps in memory.

    >>> memory_order(torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last))
    (0, 2, 3, 1)
    """
    strides = x.stride()
    order = tuple(sorted(range(x.dim()), key=lambda dim: -strides[dim]))
    return order if x.permute(order).is_contiguous() else None
