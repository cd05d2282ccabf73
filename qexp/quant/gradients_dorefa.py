"""DoReFa-Net's quantizers, which gradients pass: weights by way of tanh, activations clipped to [0, 1].

Forward, weights are the scheme `dorefa`, bit for bit, and activations `fake_quantize_affine` with a scale of 1 / (2^b - 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qexp.quant.blocks import in_blocks
from qexp.quant.codebooks import decode_binary, decode_dorefa, encode_binary, encode_dorefa, fit_binary
from qexp.quant.gradient_blocks import (
    Buffers,
    GradientContext,
    backward_in_blocks,
    block_size,
    blocked,
    compute_dtype,
    inner_product,
)
from qexp.quant.levels import level_scale
from qexp.quant.rounding import half_even


def quantize_dorefa_weight(w: Tensor, bits: int) -> Tensor:
    """DoReFa-Net's weights: even levels of tanh(w) / max|tanh w|; at one bit sign(w) mean|w|.

    w^ = 2 Q_b(tanh(w) / (2 m) + 1/2) - 1,  m = max|tanh w|,  Q_b(r) = R((2^b - 1) r) / (2^b - 1)

    Straight through R; all the rest is differentiated as it stands, the maximum too, as automatic differentiation of this formula
    does. With t = tanh(w) and k weights of the largest magnitude,

    dL/dw_i = (1 - t_i^2) / m * (g_i - [|t_i| = m] sign(t_i) sum_j(g_j t_j) / (k m))

    so that a largest weight, which always has an end of the range, is moved by the others only. At one bit dL/dw = g.

    Args:
        w: any shape, floating.
        bits: 1 to 16.

    Source: Zhou et al. 2016, arXiv:1606.06160, eqs. 7 to 9.

    >>> quantize_dorefa_weight(torch.tensor([-1.0, 0.1, 0.5]), 2)
    tensor([-1.0000,  0.3333,  0.3333])
    """
    return _DorefaWeight.apply(w, bits)


class _Context(GradientContext):
    """What the forward pass leaves to the backward pass."""

    binary: bool


class _DorefaWeight(Function):
    """DoReFa-Net's weights; w and three numbers are kept, and tanh is computed anew."""

    @staticmethod
    def forward(ctx: _Context, w: Tensor, bits: int) -> Tensor:
        ctx.binary = bits == 1
        if ctx.binary:
            scale = fit_binary(w.to(compute_dtype(w)).reshape(1, -1)).reshape(())
            return _in_blocks(w, lambda x: decode_binary(encode_binary(x), scale))
        top = level_scale(*(end.to(compute_dtype(w)) for end in torch.aminmax(w)))
        peak = torch.tanh(top)
        ctx.save_for_backward(w, top, peak)
        return _in_blocks(w, lambda x: decode_dorefa(encode_dorefa(x, peak, bits, half_even), bits))

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, None]:
        if ctx.binary:
            return grad, None
        narrow, top, peak = ctx.saved_tensors
        w = narrow.to(compute_dtype(narrow))
        slope, (moment,) = backward_in_blocks(_slope_kernel, w, grad, (peak,), None, wants_x=True)
        assert slope is not None
        # The largest weights have one slope, that of the end, so that what pulls them is one number.
        return _pulled(slope, w, top, moment * (1 - peak.square()) / peak.square()).to(narrow.dtype), None


def _pulled(slope: Tensor, w: Tensor, top: Tensor, pull: Tensor) -> Tensor:
    """A gradient less sign(w) pull / k at the k largest weights; there are none where all is zero, whose level is a constant."""
    if not blocked(w):
        largest = w.abs() == top
        return torch.where(largest, slope - torch.sign(w) * (pull / largest.sum().clamp(min=1)), slope)
    at_top = torch.nonzero((w == top) | (w == -top), as_tuple=True)
    slope[at_top] -= torch.sign(w[at_top]) * (pull / max(1, len(at_top[0])))
    return slope


def _in_blocks(w: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of one argument on w in blocks, in its dtype and layout."""
    if not blocked(w):
        return function(w.to(compute_dtype(w))).to(w.dtype)
    target = torch.empty_like(w)
    in_blocks(lambda x, out: out.copy_(function(x)), w, target, (), None, block_size())
    return target


def _slope_kernel(
    x: Tensor, grad: Tensor, peak: Tensor, *, axis: int | None, out: Tensor | None, buffers: Buffers
) -> tuple[Tensor, tuple[Tensor]]:
    """The gradient grad (1 - tanh(x)^2) / peak, and sum(grad tanh(x))."""
    squashed = torch.tanh(x, out=buffers[0])
    moment = inner_product(grad, squashed, None)  # which leaves both as they are, per tensor
    slope = squashed.square_().neg_().add_(1).div_(peak)
    return torch.mul(grad, slope, out=out), (moment,)
