"""Elementwise quantizers and their gradients block by block: `qexp.quant.blocks` for a value and its gradient.

On the CPU a block's steps find their data in cache. A small tensor, and everything on a GPU, in double precision and while torch
compiles is one block, whose steps are plain torch operators that a compiler fuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from qexp.quant.affine import clamp_steps, expand, fake_quantize_steps
from qexp.quant.blocks import in_blocks, memory_order
from qexp.quant.rounding import half_even
from qexp.quant.uniform import LearnedNumbers, Limit, affine_kernel, run_learned

# Elements of a partial sum for each thread on the CPU. What a scale learns depends on it in the last bits: raise
# `TRAINING_FORMAT` with it.
BLOCK = 1 << 16
# As many of them go through the steps at once: value, gradient, result and two buffers take 5 MiB of float32 for each thread.
# On an AMD EPYC with 512 KiB of second level cache, whose other cores were busy, LSQ's backward pass of 64 x 16 x 32 x 32 takes
# 0.70 of its time with one at once (0.86 with 2): a third level cache serves them, and operator calls are fewer.
AT_ONCE = 4

# Looked up once: the lookup takes as long as a step on a small block.
_GATE, _GATE_INTO = torch.ops.aten.hardtanh_backward.default, torch.ops.aten.hardtanh_backward.grad_input

MASKS = ("rounded", "paper")  # where the gradient passes; see `qexp.quant.gradients`

Buffers = tuple[Tensor | None, Tensor | None]
Kernel = Callable[..., tuple[Tensor | None, tuple[Tensor, ...]]]


class GradientContext(FunctionCtx):
    """What torch gives to every backward pass: the tensors that the forward pass saved, and which arguments need a gradient."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


def eager_cpu(x: Tensor) -> bool:
    """Whether reading a number costs nothing: it neither waits for a GPU nor breaks a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def blocked(x: Tensor) -> bool:
    """Whether x is worth cutting: it is larger than a block; double precision is for checks only."""
    return eager_cpu(x) and x.dtype != torch.float64 and x.numel() > block_size()


def block_size() -> int:
    """Elements of a partial sum for all threads together."""
    return BLOCK * torch.get_num_threads()


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32, and float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)` without the call where there is nothing to do: of a small weight all calls count."""
    return x if x.dtype == dtype else x.to(dtype)


def as_number(value: Limit, x: Tensor) -> Limit:
    """A zero point as a number, where all channels share it and reading it costs nothing."""
    if not isinstance(value, Tensor) or not eager_cpu(x):
        return value
    if value.dim() == 0:
        return float(value)
    return value if value.any() else 0.0


def quantize_in_blocks(x: Tensor, scale: Tensor, low: Limit, high: Limit, axis: int | None) -> Tensor:
    """fake_quantize_affine, in the dtype and layout of x."""
    inverse = scale.reciprocal()
    if not blocked(x):
        inverse, scale = expand(inverse, axis, x), expand(scale, axis, x)
        low, high = expand(low, axis, x), expand(high, axis, x)
        wide = as_dtype(x, compute_dtype(x))
        return as_dtype(fake_quantize_steps(wide, torch.mul, inverse, half_even, low, high, scale), x.dtype)
    target = torch.empty_like(x)
    in_blocks(
        affine_kernel(torch.mul, half_even, "half_even"), x, target, (inverse, low, high, scale), axis, AT_ONCE * block_size()
    )
    return target


def backward_in_blocks(
    kernel: Kernel, x: Tensor, grad: Tensor, params: Sequence[Limit | None], axis: int | None, *, wants_x: bool
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """The gradient with respect to x, in its dtype and layout, and the sums over all elements or, with an axis, each channel's.

    Args:
        kernel: `kernel(x, grad, *params, axis=, out=, buffers=) -> (grad_x or None, sums)` on float32 (or float64) blocks; `axis`
            is the block's own, `out` and the two `buffers` are memory to write to, or None.
        x: any dtype, layout and device.
        grad: of equal shape.
        params: numbers, None, 0-d tensors, or [C] tensors, which the kernel gets broadcastable to its block.
        axis: channel axis, None per tensor.
        wants_x: whether there shall be a gradient with respect to x.
    """
    if not blocked(x):
        columns = [expand(param, axis, x) if isinstance(param, Tensor) and param.dim() else param for param in params]
        dtype = compute_dtype(x)
        if grad.stride() != x.stride():  # else the result would have the layout of grad
            grad = torch.empty_like(x, dtype=dtype).copy_(grad)
        grad_x, sums = kernel(as_dtype(x, dtype), as_dtype(grad, dtype), *columns, axis=axis, out=None, buffers=(None, None))
        return (as_dtype(grad_x, x.dtype) if wants_x and grad_x is not None else None), sums
    order = tuple(range(x.dim())) if x.is_contiguous() else memory_order(x)
    if order is None:
        x, order = x.contiguous(), tuple(range(x.dim()))
    target = torch.empty_like(x) if wants_x else None
    whole = target
    if not (x.is_contiguous() and grad.is_contiguous()):
        x, grad = x.permute(order), grad.permute(order).contiguous()
        whole = None if target is None else target.permute(order)
    shape = _shape(x, None if axis is None else order.index(axis % x.dim()))
    return target, _run(kernel, x.view(shape), grad.view(shape), None if whole is None else whole.view(shape), params)


def _shape(x: Tensor, axis: int | None) -> tuple[int, ...]:
    """[N], or [C, B] where nothing comes before the channels, else [A, C, B]."""
    if axis is None:
        return (-1,)
    channels, before = x.shape[axis], math.prod(x.shape[:axis])
    return (channels, -1) if before == 1 else (before, channels, -1)


def _run(kernel: Kernel, x: Tensor, grad: Tensor, target: Tensor | None, params: Sequence[Limit | None]) -> tuple[Tensor, ...]:
    """`backward_in_blocks` for contiguous tensors, cut along their first dimension."""
    # Of channels each block is summed at once, so that it is a partial sum.
    rows = min(AT_ONCE * block_size() if x.dim() == 1 else max(1, block_size() // x[0].numel()), len(x))
    axis = x.dim() - 2 if x.dim() > 1 else None
    direct = target if target is not None and target.dtype == torch.float32 else None
    buffers = [torch.empty((rows, *x.shape[1:]), dtype=torch.float32) for _ in range(2 if direct is not None else 3)]
    # A block along C takes its channels' rows of the columns; one along A all of them.
    columns = [param.reshape(-1, 1) if isinstance(param, Tensor) and param.dim() else param for param in params]
    cut = axis == 0 and any(isinstance(column, Tensor) and column.dim() for column in columns)
    outs = None if direct is None else direct.split(rows)
    chosen, parts = columns, []
    # Cut by `split`, and buffers whole: on small blocks, views by index take as long as the steps themselves.
    for number, (values, slopes) in enumerate(zip(x.split(rows), grad.split(rows), strict=True)):
        sized = buffers if len(values) == rows else [buffer[: len(values)] for buffer in buffers]
        out = sized[2] if outs is None else outs[number]
        block = slice(number * rows, number * rows + len(values))
        if cut:
            chosen = [column[block] if isinstance(column, Tensor) and column.dim() else column for column in columns]
        parts.append(kernel(values.float(), slopes.float(), *chosen, axis=axis, out=out, buffers=(sized[0], sized[1]))[1])
        if target is not None and direct is None:
            target[block].copy_(out)
    join = torch.cat if axis == 0 else _add if axis is None else _add_channels
    return tuple(join(part) for part in zip(*parts, strict=True))


def _add(parts: Sequence[Tensor]) -> Tensor:
    """The sum of all blocks' partial sums, 0-d or [parts] of a block."""
    if len(parts) == 1 and not parts[0].dim():
        return parts[0]
    return torch.cat([part.reshape(-1) for part in parts]).sum(0)


def _add_channels(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


def learned_kernel(
    x: Tensor,
    grad: Tensor,
    inverse: Tensor,
    low: Limit,
    high: Limit,
    below: Limit,
    above: Limit,
    *,
    axis: int | None,
    out: Tensor | None,
    buffers: Buffers,
    wants_x: bool,
    wants_scale: bool,
    wants_outside: bool,
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Of LSQ: the gradient inside, sum(grad {R(v) - v; low; high}), sum(grad outside)."""
    sums = []
    passed = None
    if wants_scale:
        # What is subtracted is v inside and 0 outside. Two dot products, grad R(v) and grad_x v, would be faster and cancel.
        numbers = inverse, low, high, below, above
        steps = partial(learned_steps, x, grad, numbers, out, buffers)
        passed, moved = run_learned(x, grad, numbers, out, buffers[1], steps)
        sums.append(inner_product(grad, moved, axis))
    elif wants_x or wants_outside:
        passed = gate(grad, torch.mul(x, inverse, out=buffers[0]), below, above, out=out)
    if wants_outside:
        assert passed is not None
        sums.append(total(torch.sub(grad, passed, out=buffers[0]), axis))
    return passed, tuple(sums)


def learned_steps(
    x: Tensor, grad: Tensor, numbers: LearnedNumbers, out: Tensor | None, buffers: Buffers
) -> tuple[Tensor, Tensor]:
    """The gradient inside, and {R(v) - v inside; low; high}; the second may be in the second buffer."""
    inverse, low, high, below, above = numbers
    steps = torch.mul(x, inverse, out=buffers[0])
    passed = gate(grad, steps, below, above, out=out)
    rounded = torch.round(steps, out=buffers[1])
    rounded = clamp_steps(rounded, low, high, out=rounded)
    return passed, rounded.sub_(gate(steps, steps, below, above, out=buffers[0]))


def clipped_kernel(
    x: Tensor,
    grad: Tensor,
    inverse: Tensor | None,
    below: Limit,
    above: Limit,
    *,
    axis: int | None,
    out: Tensor | None,
    buffers: Buffers,
    signed: bool,
    wants_alpha: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of PACT: the gradient inside, and the sum of what is above, less what is below if signed."""
    values = x if inverse is None else torch.mul(x, inverse, out=buffers[0])
    passed = gate(grad, values, below, above, out=out)
    if not wants_alpha:
        return passed, ()
    outside = torch.sub(grad, passed, out=buffers[1])
    if signed:
        return passed, (inner_product(outside, torch.sign(values, out=buffers[0]), axis),)
    # grad where the value is positive: alpha is, so these are the values above
    return passed, (total(gate(outside, values, 0.0, math.inf, out=buffers[1]), axis),)


def gate(grad: Tensor, values: Tensor, low: Limit, high: Limit, out: Tensor | None = None) -> Tensor:
    """`grad` where low < value < high, else 0; one pass where the limits are numbers."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        passed = torch.where((values > low) & (values < high), grad, 0.0)
        return passed if out is None else out.copy_(passed)
    if out is None:
        return _GATE(grad, values, low, high)
    return _GATE_INTO(grad, values, low, high, grad_input=out)


def inner_product(a: Tensor, b: Tensor, axis: int | None) -> Tensor:
    """Sum of a * b over all elements, or over all but the axis; b may be overwritten. Of a large block [parts], partial sums."""
    if axis is None:
        if a.dim() != 1 or not eager_cpu(a):
            return (a * b).sum()
        parts = [torch.dot(*pair) for pair in zip(_partial(a), _partial(b), strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts)
    return total(b.mul_(a), axis)


def total(a: Tensor, axis: int | None) -> Tensor:
    """Sum over all elements, or over all but the axis. Of a large block [parts], partial sums."""
    if axis is None:
        parts = [part.sum() for part in _partial(a)] if a.dim() == 1 and eager_cpu(a) else [a.sum()]
        return parts[0] if len(parts) == 1 else torch.stack(parts)
    return a.sum([dim for dim in range(a.dim()) if dim != axis % a.dim()])


def _partial(a: Tensor) -> Sequence[Tensor]:
    """What partial sums are of: the tensor itself where it is no large block."""
    return a.split(block_size()) if a.dtype != torch.float64 and a.numel() > block_size() else (a,)


def rounded_limits(low: Limit, high: Limit, dtype: torch.dtype) -> tuple[Limit, Limit]:
    """Open limits of v that hold exactly where low <= R(v) <= high, for integral limits and ties to even.

    v = high + 1/2 is rounded down to an even `high`, so that the limit is then the next float above it; likewise below.

    >>> rounded_limits(-1.0, 1.0, torch.float32), rounded_limits(0.0, 3.0, torch.float64)
    ((-1.5, 1.5), (-0.5000000000000001, 3.5))
    """
    return _beyond(low, -1, dtype), _beyond(high, 1, dtype)


def _beyond(limit: Limit, side: int, dtype: torch.dtype) -> Limit:
    """`limit` + side / 2, or the next float on that side where the limit is even."""
    if isinstance(limit, Tensor):
        ends = limit + side / 2
        return torch.where(limit % 2 == 0, torch.nextafter(ends, torch.full_like(ends, side * math.inf)), ends)
    half = limit + side / 2
    digits = 53 if dtype == torch.float64 else 24
    return half + side * math.ldexp(1.0, math.frexp(half)[1] - digits) if limit % 2 == 0 else half
