"""PACT's quantizer, which gradients pass: the end of an activation's range is learned.

Forward it is `qexp.quant.affine.fake_quantize_affine` of the grid `unsigned_symmetric`, or `symmetric_restricted` where signed.
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
    backward_in_blocks,
    clipped_kernel,
    compute_dtype,
    eager_cpu,
    quantize_in_blocks,
    rounded_limits,
)
from qexp.quant.scheme_table import code_range


def quantize_clipped(x: Tensor, alpha: Tensor, bits: int, *, signed: bool = False, mask: str = "paper") -> Tensor:
    """PACT: the range [0, alpha], or [-alpha, alpha], is learned.

    x^ = clamp(R(x * (1/s)), 0, p) * s,  s = alpha / p, p = 2^b - 1                        (the grid `unsigned_symmetric`)
    signed: clamp(R(x * (1/s)), -p, p) * s, p = 2^(b-1) - 1                               (the grid `symmetric_restricted`)

    dx^/dx = 1 where 0 <= x < alpha, else 0                                               (signed: -alpha < x < alpha)
    dx^/dalpha = 1 where x >= alpha, else 0                                               (signed: and -1 where x <= -alpha)

    Args:
        x: any shape, floating.
        alpha: float32, one number. The caller keeps it positive.
        bits: 1 to 16, signed 2 to 16.
        signed: whether values may be negative.
        mask: `paper`, as above; `rounded` takes what rounds to a code as inside.

    Raises:
        UserError: an unknown mask.

    Source: Choi et al. 2018, arXiv:1805.06085, eqs. 1 to 3; the signed form is its usual extension.

    >>> x, alpha = torch.tensor([-1.0, 0.3, 2.0, 3.0]), torch.tensor(1.5, requires_grad=True)
    >>> quantize_clipped(x, alpha, 2).sum().backward()
    >>> alpha.grad
    tensor(2.)
    """
    return _Clipped.apply(x, alpha, bits, signed, choose("mask", mask, MASKS))


class _Context(GradientContext):
    """What the forward pass leaves to the backward pass: bits, signed, mask."""

    settings: tuple[int, bool, str]


class _Clipped(Function):
    """PACT, and with an alpha that is fixed DoReFa-Net's activations."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, alpha: Tensor, bits: int, signed: bool, mask: str) -> Tensor:
        """Values on the grid."""
        ctx.save_for_backward(x, alpha)
        ctx.settings = bits, signed, mask
        low, high = _clipped_range(bits, signed)
        return quantize_in_blocks(x, _clipped_scale(alpha, high, x), low, high, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and alpha."""
        bits, signed, mask = ctx.settings
        x, alpha = ctx.saved_tensors
        wants_x, wants_alpha = ctx.needs_input_grad[:2]
        low, high = _clipped_range(bits, signed)
        dtype = compute_dtype(x)
        inverse: Tensor | None = None
        ends: tuple[Tensor | float, Tensor | float]
        if mask == "rounded":
            inverse = _clipped_scale(alpha, high, x).reciprocal()
            ends = rounded_limits(low, high, dtype)
        else:
            end: Tensor | float = alpha.to(dtype).reshape(())
            end = float(end) if eager_cpu(x) else end
            ends = (-end if signed else -_smallest(dtype)), end
        kernel = partial(clipped_kernel, signed=signed, wants_alpha=wants_alpha)
        grad_x, sums = backward_in_blocks(kernel, x, grad, (inverse, *ends), None, wants_x=wants_x)
        grad_alpha = sums[0].to(alpha.dtype).reshape(alpha.shape) if wants_alpha else None
        return grad_x, grad_alpha, None, None, None


def _clipped_range(bits: int, signed: bool) -> tuple[float, float]:
    """Smallest and largest code."""
    low, high = code_range("symmetric_restricted" if signed else "unsigned_symmetric", bits)
    return float(low), float(high)


def _clipped_scale(alpha: Tensor, high: float, x: Tensor) -> Tensor:
    """Alpha / high, 0-d, in the dtype of the computation."""
    # Divided by a tensor: by a number, CUDA multiplies with its reciprocal, one unit in the last place off.
    alpha = alpha.detach().to(compute_dtype(x)).reshape(())
    return alpha / torch.full_like(alpha, high)


def _smallest(dtype: torch.dtype) -> float:
    """The smallest positive number of a dtype, subnormal."""
    return math.ldexp(1.0, -1074 if dtype == torch.float64 else -149)
