"""From a range to the parameters of an affine grid.

Two families. *Affine* codes are signed, quant_min = -2^(b-1), quant_max = 2^(b-1) - 1. *Symmetric* here means the restricted one:
quant_min = -quant_max = -(2^(b-1) - 1), zero point 0, scale = max|x| / quant_max. Rejected for weights: the full symmetric range
of torch's observers (scale = max|x| / 127.5), whose extra code -128 costs sign symmetry and overflows int8 dot products in pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.base.checks import check_bits
from qexp.base.errors import UserError
from qexp.base.nouns import QParams
from qexp.quant.ranges import ConstantTensorError

# The smallest normal float32: below it 1 / scale would overflow. A range that small uses fewer of its codes.
MIN_SCALE = torch.finfo(torch.float32).tiny


def choose_qparams(minimum: Tensor, maximum: Tensor, bits: int, *, symmetric: bool = False, axis: int | None = None) -> QParams:
    """Scale and zero point that cover a range and hold zero exactly.

    affine:    m = min(min, 0), M = max(max, 0); scale = (M - m) / (2^b - 1); zero_point = clamp(round(quant_min - m / scale))
    symmetric: scale = max(|min|, |max|) / (2^(b-1) - 1); zero_point = 0

    The affine range is widened to hold zero *before* the scale is taken. Computed in float64; the scale is rounded to float32
    before the zero point is taken from it. A channel whose elements are all zero gets scale 1: its codes are its zero point.

    Args:
        minimum: finite, 0-d or [channels].
        maximum: likewise.
        bits: 1 to 16; 2 to 16 if symmetric.
        symmetric: which of the two.
        axis: channel axis; None per tensor.

    Raises:
        UserError: bits out of range; all of the range is zero; the scale overflows float32.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3; Nagel et al. 2021, arXiv:2106.08295, section 2.2.

    >>> choose_qparams(torch.tensor(0.5), torch.tensor(2.55), bits=8).zero_point
    tensor(-128.)
    """
    check_bits("bits", bits)
    minimum, maximum = minimum.double().clamp(max=0), maximum.double().clamp(min=0)
    if symmetric:
        if bits == 1:
            remedy = "The restricted symmetric grid has 2^(bits-1) - 1 codes on each side of zero: none at one bit."
            raise UserError("bits", 1, allowed="an integer from 2 to 16 for a symmetric grid", remedy=remedy)
        quant_max = 2 ** (bits - 1) - 1
        quant_min = -quant_max
        span, steps = torch.maximum(-minimum, maximum), quant_max
    else:
        quant_min, quant_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        span, steps = maximum - minimum, quant_max - quant_min
    widest = float(span.max())
    if widest == 0:
        raise ConstantTensorError(0.0, allowed="an element other than zero")
    if widest / steps > torch.finfo(torch.float32).max:
        raise UserError("tensor", f"range {widest:g}", allowed="a range whose scale float32 holds")
    # Divided by a tensor: by a number, CUDA multiplies with its reciprocal.
    scale = (span / torch.full_like(span, steps)).clamp_(min=MIN_SCALE)
    if span.dim():
        scale.masked_fill_(span == 0, 1.0)
    scale = scale.float()
    if symmetric:
        return QParams(scale, torch.zeros_like(scale), quant_min, quant_max, axis)
    zero_point = torch.round(quant_min - minimum / scale.double()).clamp_(quant_min, quant_max).float()
    return QParams(scale, zero_point, quant_min, quant_max, axis)
