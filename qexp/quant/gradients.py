"""Quantizers that gradients pass: straight-through, LSQ and LSQ+; PACT's and DoReFa-Net's have modules of their own.

Forward they are `qexp.quant.affine.fake_quantize_affine` (`reciprocal`, ties to even), bit for bit, so that what was trained is
what a converted network computes. Backward each follows its paper. v = x / scale; R rounds.

One autograd function per tensor, which keeps x and nothing of its size besides: a weight is alive as long as its network, and the
ReLU before a quantizer keeps its result for itself. Rejected: a mask of one byte per element, which adds to what is alive where x
is, and from which the scale's gradient does not follow. All is computed in float32 (float64 for float64) and comes back in the
dtype and layout of x.

`mask` names where the gradient passes: `rounded`, quant_min <= R(v) + zero_point <= quant_max, as torch's; `paper`,
quant_min < v + zero_point < quant_max, as LSQ's. They differ in the half step around each end of the range.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qexp.base.errors import choose
from qexp.quant.gradient_blocks import (
    MASKS,
    GradientContext,
    as_dtype,
    as_number,
    backward_in_blocks,
    compute_dtype,
    learned_kernel,
    quantize_in_blocks,
    rounded_limits,
)


def fake_quantize_ste(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | float,
    quant_min: int,
    quant_max: int,
    *,
    axis: int | None = None,
    mask: str = "rounded",
) -> Tensor:
    """The affine quantizer, straight through its rounding.

    x^ = clamp(R(x * (1/scale)), quant_min - zero_point, quant_max - zero_point) * scale
    dx^/dx = 1 inside the mask, else 0

    Args:
        x: any shape, floating.
        scale: float32, positive, 0-d or [channels]; gets no gradient.
        zero_point: integral, float32 of the shape of scale, or a number for all channels (on a GPU the faster).
        quant_min: smallest code.
        quant_max: largest code.
        axis: channel axis of scale and zero_point, None per tensor.
        mask: `rounded` (torch) or `paper`.

    Raises:
        UserError: an unknown mask.

    Source: Bengio et al. 2013, arXiv:1308.3432; torch `fake_quantize_per_tensor_affine`.

    >>> x = torch.tensor([-2.0, 0.3, 1.2], requires_grad=True)
    >>> fake_quantize_ste(x, torch.tensor(0.5), 0, -2, 1).sum().backward()
    >>> x.grad
    tensor([0., 1., 0.])
    """
    return _FakeQuantize.apply(
        x, scale.detach(), None, zero_point, quant_min, quant_max, axis, choose("mask", mask, MASKS), 1.0, None
    )


def fake_quantize_learned(
    x: Tensor,
    scale: Tensor,
    *,
    quant_min: int,
    quant_max: int,
    gradient_factor: float,
    axis: int | None = None,
    mask: str = "paper",
    offset: Tensor | None = None,
) -> Tensor:
    """LSQ, the affine quantizer with a learned scale; with an offset LSQ+.

    x^ = clamp(R(x * (1/scale)), quant_min - z, quant_max - z) * scale
    z = 0, with an offset clamp(R(-offset * (1/scale)), quant_min, quant_max)

    dx^/dx = 1 inside the mask, else 0
    dx^/dscale = {R(v) - v inside; quant_min - r below; quant_max - r above} * gradient_factor
    dx^/doffset = {0 inside; 1 outside} * gradient_factor
    r = z + offset / scale, what rounding adds to the zero point; 0 without an offset

    LSQ+ writes x^ = R(clamp((x - offset) / scale, quant_min, quant_max)) scale + offset: the offset is the value of code 0. Here
    that value is a whole number of steps, -z scale = offset - r scale, so that zero is represented exactly, as padding needs it,
    and integer runtimes, whose zero points are codes, compute the same. The gradients are straight through both roundings: the
    paper's, and -r outside. Where -offset / scale rounds beyond the codes, z is their end whatever the scale, so that r counts as
    z; the offset learns there as elsewhere, since else it would never come back.

    Args:
        x: any shape, floating.
        scale: float32, 0-d or [channels]. The caller keeps it positive.
        quant_min: smallest code.
        quant_max: largest code.
        gradient_factor: of the gradients of scale and offset; see `gradient_factor`.
        axis: channel axis of scale and offset, None per tensor.
        mask: `paper` or `rounded`.
        offset: float32, of the shape of scale.

    Raises:
        UserError: an unknown mask.

    Source: Esser et al. 2020, arXiv:1902.08153, section 2.1; Bhalgat et al. 2020, arXiv:2004.09576, section 3.

    >>> x, scale = torch.tensor([-2.0, 0.3, 1.2]), torch.tensor(0.5, requires_grad=True)
    >>> fake_quantize_learned(x, scale, quant_min=-2, quant_max=1, gradient_factor=1.0).sum().backward()
    >>> scale.grad  # -2 + (1 - 0.6) + 1
    tensor(-0.6000)
    """
    zero_point: Tensor | float = 0.0
    unrounded = None
    if offset is not None:
        zero_point, unrounded = _zero_point(offset, scale, quant_min, quant_max)
    return _FakeQuantize.apply(
        x, scale, offset, zero_point, quant_min, quant_max, axis, choose("mask", mask, MASKS), gradient_factor, unrounded
    )


def offset_zero_point(offset: Tensor, scale: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """The zero point of LSQ+: clamp(R(-offset * (1/scale)), quant_min, quant_max), float32 of the shape of scale."""
    return _zero_point(offset, scale, quant_min, quant_max)[0]


def _zero_point(offset: Tensor, scale: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """The zero point and -offset / scale, whose rounding it is; 0 where that is beyond the codes: the scale does not move it."""
    steps = -offset.detach() * scale.detach().reciprocal()
    rounded = torch.round(steps)
    zero_point = torch.clamp(rounded, quant_min, quant_max)
    return zero_point, torch.where(rounded == zero_point, steps, 0.0)


def gradient_factor(num_elements: int, quant_max: int) -> float:
    """LSQ's factor of the scale's gradient, 1 / sqrt(N p): the step then learns about as fast as the weights; of an offset too.

    Args:
        num_elements: N, weights of a scale, or elements of an activation (without the batch) of a scale.
        quant_max: p, largest code.

    Source: Esser et al. 2020, arXiv:1902.08153, section 2.2.
    """
    return 1 / math.sqrt(num_elements * quant_max)


def initial_scale(mean_abs: Tensor, quant_max: int) -> Tensor:
    """LSQ's first scale, 2 E|x| / sqrt(p).

    Args:
        mean_abs: E|x|, 0-d or [channels].
        quant_max: p, largest code.

    Source: Esser et al. 2020, arXiv:1902.08153, section 2.1.
    """
    return 2 * mean_abs / math.sqrt(quant_max)


def initial_weight_scale(mean: Tensor, std: Tensor, bits: int) -> Tensor:
    """LSQ+'s first scale of a weight, max(|mean - 3 std|, |mean + 3 std|) / 2^(b-1).

    Args:
        mean: of the weights, 0-d or [channels].
        std: standard deviation of the weights, likewise.
        bits: width.

    Source: Bhalgat et al. 2020, arXiv:2004.09576, section 3.
    """
    return torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 2 ** (bits - 1)


class _Context(GradientContext):
    """What the forward pass leaves to the backward pass.

    `settings` are quant_min, quant_max, axis, mask, gradient factor, and the zero point where it is a number; `dtypes` and
    `shapes` those of scale and offset.
    """

    settings: tuple[int, int, int | None, str, float, float | None]
    dtypes: tuple[torch.dtype, torch.dtype | None]
    shapes: tuple[torch.Size, torch.Size | None]


class _FakeQuantize(Function):
    """Straight-through, LSQ and LSQ+: they differ in which arguments ask for a gradient."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        zero_point: Tensor | float,
        quant_min: int,
        quant_max: int,
        axis: int | None,
        mask: str,
        factor: float,
        unrounded: Tensor | None,
    ) -> Tensor:
        ctx.dtypes = scale.dtype, None if offset is None else offset.dtype
        ctx.shapes = scale.shape, None if offset is None else offset.shape
        axis = None if scale.dim() == 0 else axis
        dtype = compute_dtype(x)
        scale = as_dtype(scale, dtype)
        scale = scale if axis is not None or not scale.dim() else scale.reshape(())
        zero_point = as_number(zero_point, x)
        if isinstance(zero_point, Tensor):
            zero_point = zero_point.to(dtype) if axis is not None else zero_point.to(dtype).reshape(())
        low, high = quant_min - zero_point, quant_max - zero_point
        tensors = [x, scale, *([zero_point] if isinstance(zero_point, Tensor) else [])]
        if unrounded is not None:
            tensors.append(as_dtype(unrounded, dtype).reshape(scale.shape))
        ctx.save_for_backward(*tensors)
        ctx.settings = quant_min, quant_max, axis, mask, factor, None if isinstance(zero_point, Tensor) else zero_point
        return quantize_in_blocks(x, scale, low, high, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        quant_min, quant_max, axis, mask, factor, number = ctx.settings
        x, scale, *rest = ctx.saved_tensors
        zero_point = rest[0] if number is None else number
        unrounded = rest[-1] if ctx.shapes[1] is not None else None
        wants_x, wants_scale, wants_offset = ctx.needs_input_grad[:3]
        low, high = quant_min - zero_point, quant_max - zero_point
        ends = rounded_limits(low, high, scale.dtype) if mask == "rounded" else (low, high)
        # Of the part that was clamped sums[0] has the ends less z; with an offset they are less r, -offset / scale more.
        shifted = wants_scale and unrounded is not None
        kernel = partial(learned_kernel, wants_scale=wants_scale, wants_outside=wants_offset or shifted, wants_x=wants_x)
        grad_x, sums = backward_in_blocks(kernel, x, grad, (scale.reciprocal(), low, high, *ends), axis, wants_x=wants_x)
        grad_scale = grad_offset = None
        if wants_scale:
            steps = sums[0] if unrounded is None else sums[0] + unrounded * sums[1]
            grad_scale = as_dtype(steps * factor, ctx.dtypes[0])
            grad_scale = grad_scale if grad_scale.shape == ctx.shapes[0] else grad_scale.reshape(ctx.shapes[0])
        if wants_offset:
            dtype, shape = ctx.dtypes[1], ctx.shapes[1]
            assert dtype is not None and shape is not None
            grad_offset = (sums[-1] * factor).to(dtype).reshape(shape)
        return grad_x, grad_scale, grad_offset, None, None, None, None, None, None, None
