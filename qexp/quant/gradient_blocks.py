"""Elementwise quantizers and their gradients block by block: `qexp.quant.blocks` for a value and its gradient.

On the CPU a block's steps find their data in cache. A small tensor, and everything on a GPU, in double precision and while torch
compiles is one block, whose steps are plain torch operators that a compiler fuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from qexp.quant.affine import clamp_steps, expand, fake_quantize_steps
from qexp.quant.blocks import in_blocks, memory_order
from qexp.quant.rounding import half_even

# Elements per block and thread on the CPU: value, gradient, result and two buffers take 1.25 MiB of float32, about what a second
# level cache holds. A quarter of it takes a third longer, for its operator calls; twice as much about the same.
BLOCK = 1 << 16

MASKS = ("rounded", "paper")  # where the gradient passes; see `qexp.quant.gradients`

Limit = Tensor | float  # one for all channels, or one for each
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
    """Elements per block for all threads together."""
    return BLOCK * torch.get_num_threads()


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32, and float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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
        return fake_quantize_steps(x.to(compute_dtype(x)), torch.mul, inverse, half_even, low, high, scale).to(x.dtype)

    def kernel(x: Tensor, out: Tensor, inverse: Tensor, low: Limit, high: Limit, scale: Tensor) -> None:
        fake_quantize_steps(x, torch.mul, inverse, half_even, low, high, scale, out=out)

    target = torch.empty_like(x)
    in_blocks(kernel, x, target, (inverse, low, high, scale), axis, block_size())
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
        grad_x, sums = kernel(x.to(dtype), grad.to(dtype), *columns, axis=axis, out=None, buffers=(None, None))
        return (grad_x.to(x.dtype) if wants_x and grad_x is not None else None), sums
    order = memory_order(x)
    if order is None:
        x, order = x.contiguous(), tuple(range(x.dim()))
    target = torch.empty_like(x) if wants_x else None
    axis = None if axis is None else order.index(axis % x.dim())
    x, grad = x.permute(order), grad.permute(order).contiguous()
    shape = _shape(x, axis)
    whole = target.permute(order).view(shape) if target is not None else None
    return target, _run(kernel, x.view(shape), grad.view(shape), whole, params)


def _shape(x: Tensor, axis: int | None) -> tuple[int, ...]:
    """[N], or [C, B] where nothing comes before the channels, else [A, C, B]."""
    if axis is None:
        return (-1,)
    channels, before = x.shape[axis], math.prod(x.shape[:axis])
    return (channels, -1) if before == 1 else (before, channels, -1)


def _run(kernel: Kernel, x: Tensor, grad: Tensor, target: Tensor | None, params: Sequence[Limit | None]) -> tuple[Tensor, ...]:
    """`backward_in_blocks` for contiguous tensors, cut along their first dimension."""
    rows = max(1, block_size() // (1 if x.dim() == 1 else x[0].numel()))
    axis = x.dim() - 2 if x.dim() > 1 else None
    buffers = [torch.empty((min(rows, len(x)), *x.shape[1:]), dtype=torch.float32) for _ in range(3)]
    # A block along C takes its channels' rows of the columns; one along A all of them.
    columns = [param.reshape(-1, 1) if isinstance(param, Tensor) and param.dim() else param for param in params]
    direct = target if target is not None and target.dtype == torch.float32 else None
    parts = []
    for start in range(0, len(x), rows):
        block = slice(start, start + rows)
        values, size = x[block].float(), min(rows, len(x) - start)
        first, second, third = (buffer[:size] for buffer in buffers)
        out = third if direct is None else direct[block]
        chosen = [column[block] if axis == 0 and isinstance(column, Tensor) and column.dim() else column for column in columns]
        parts.append(kernel(values, grad[block].float(), *chosen, axis=axis, out=out, buffers=(first, second))[1])
        if target is not None and direct is None:
            target[block].copy_(out)
    join = torch.cat if axis == 0 else _add
    return tuple(join(part) for part in zip(*parts, strict=True))


def _add(parts: Sequence[Tensor]) -> Tensor:
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
    steps = torch.mul(x, inverse, out=buffers[0])
    passed = gate(grad, steps, below, above, out=out) if wants_x or wants_outside else None
    sums = []
    if wants_scale:
        rounded = clamp_steps(torch.round(steps, out=buffers[1]), low, high)
        # What is subtracted is v inside and 0 outside. Two dot products, grad R(v) and grad_x v, would be faster and cancel.
        rounded = rounded.sub_(gate(steps, steps, below, above, out=buffers[0]))
        sums.append(inner_product(grad, rounded, axis))
    if wants_outside:
        assert passed is not None
        sums.append(total(torch.sub(grad, passed, out=buffers[0]), axis))
    return passed, tuple(sums)


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
        return torch.ops.aten.hardtanh_backward(grad, values, low, high)
    return torch.ops.aten.hardtanh_backward.grad_input(grad, values, low, high, grad_input=out)


def inner_product(a: Tensor, b: Tensor, axis: int | None) -> Tensor:
    """Sum of a * b over all elements, or over all but the axis; b may be overwritten."""
    if axis is None:
        return torch.dot(a, b) if a.dim() == 1 and eager_cpu(a) else (a * b).sum()
    return total(b.mul_(a), axis)


def total(a: Tensor, axis: int | None) -> Tensor:
    """Sum over all elements, or over all but the axis."""
    if axis is None:
        return a.sum()
    return a.sum([dim for dim in range(a.dim()) if dim != axis % a.dim()])


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
