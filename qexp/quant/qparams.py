"""From a range to the parameters of a uniform grid.

*Affine* codes are signed, -2^(b-1) to 2^(b-1) - 1, with a zero point. The symmetric grids have none:

- `symmetric` is torch's observers' and document 001's: all 2^b codes, scale = max|x| / ((quant_max - quant_min) / 2) = max|x| /
  127.5 at 8 bits. The extra code -2^(b-1) costs sign symmetry and overflows int8 dot products in pairs; max|x| itself is half a
  step beyond the last code.
- `symmetric_restricted` leaves that code out: +-(2^(b-1) - 1), scale = max|x| / (2^(b-1) - 1). What weights should take.
- `unsigned_symmetric` is for what is never negative, as after a ReLU: 0 to 2^b - 1, scale = max / (2^b - 1).
- `pow2_scale` is the restricted grid with its scale brought to a power of two, a shift in hardware.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.base.catalog import is_own
from qexp.base.checks import check_bits
from qexp.base.errors import UserError, choose
from qexp.base.types import QParams
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.scheme_table import SCHEMES, SchemeInfo, code_range

# The smallest normal float32: below it 1 / scale would overflow. A range that small uses fewer of its codes.
MIN_SCALE = torch.finfo(torch.float32).tiny


def choose_qparams(
    minimum: Tensor, maximum: Tensor, bits: int, *, scheme: str = "affine", pow2_round: str = "ceil", axis: int | None = None
) -> QParams:
    """Scale and zero point that cover a range and hold zero exactly.

    affine:               m = min(min, 0), M = max(max, 0); scale = (M - m) / (2^b - 1); zero_point = clamp(round(quant_min - m /
        scale))
    symmetric:            scale = max(|min|, |max|) / ((quant_max - quant_min) / 2); zero_point = 0
    symmetric_restricted: scale = max(|min|, |max|) / (2^(b-1) - 1); zero_point = 0
    unsigned_symmetric:   scale = max / (2^b - 1); zero_point = 0; negative values become 0
    pow2_scale:           scale = 2^ceil(log2(max(|min|, |max|) / (2^(b-1) - 1))); zero_point = 0

    The affine range is widened to hold zero *before* the scale is taken. Computed in float64; the scale is rounded to float32
    before the zero point is taken from it. A channel whose elements are all zero gets scale 1: its codes are its zero point.

    Args:
        minimum: finite, 0-d or [channels].
        maximum: likewise.
        bits: 1 to 16; 2 to 16 for the signed symmetric grids.
        scheme: one whose row says `affine_activations`, or a user's own that covers a range alike.
        pow2_round: of `pow2_scale`: `ceil` never clips; `nearest` rounds the logarithm and may.
        axis: channel axis; None per tensor.

    Raises:
        UserError: bits out of range; all of the range is zero (unsigned: nothing is positive); the scale overflows float32.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3; Nagel et al. 2021, arXiv:2106.08295, section 2.2; document 001.

    >>> choose_qparams(torch.tensor(0.5), torch.tensor(2.55), bits=8).zero_point
    tensor(-128.)
    """
    check_bits("bits", bits)
    ours = SCHEMES.names_where(lambda row: row.affine_activations)
    row = SCHEMES[scheme if is_own(scheme) else choose("quant.name", scheme, ours)]
    if bits < row.min_bits:
        remedy = "A symmetric grid has 2^(bits-1) - 1 codes above zero: none at one bit."
        raise UserError("bits", bits, allowed=f"an integer from {row.min_bits} to 16 for {scheme}", remedy=remedy)
    quant_min, quant_max = row.code_range(bits)
    minimum, maximum = minimum.double().clamp(max=0), maximum.double().clamp(min=0)
    span, steps = _span(minimum, maximum, row, quant_min, quant_max)
    # Divided by a tensor: by a number, CUDA multiplies with its reciprocal.
    scale = span / torch.full_like(span, steps)
    if "pow2_round" in row.reads:
        scale = power_of_two(scale, span, steps, pow2_round)
    scale = scale.clamp_(min=MIN_SCALE)
    if span.dim():
        scale.masked_fill_(span == 0, 1.0)
    scale = scale.float()
    if row.ends != "both":
        return QParams(scale, torch.zeros_like(scale), quant_min, quant_max, axis)
    zero_point = torch.round(quant_min - minimum / scale.double()).clamp_(quant_min, quant_max).float()
    return QParams(scale, zero_point, quant_min, quant_max, axis)


def _span(minimum: Tensor, maximum: Tensor, row: SchemeInfo, quant_min: int, quant_max: int) -> tuple[Tensor, float]:
    """What the steps of a grid cover, float64, and their number; the range holds zero."""
    steps: float = quant_max - quant_min
    if row.ends == "both":
        span = maximum - minimum
    elif row.ends == "upper":
        span = maximum
    else:
        span, steps = torch.maximum(-minimum, maximum), steps / 2
    widest = float(span.max())
    if widest == 0:
        if bool((minimum < 0).any()):
            raise UserError("tensor", "no element above zero", allowed="positive elements for an unsigned grid")
        raise ConstantTensorError(0.0, allowed="an element other than zero")
    if widest / steps > torch.finfo(torch.float32).max:
        raise UserError("tensor", f"range {widest:g}", allowed="a range whose scale float32 holds")
    return span, steps


def power_of_two(scale: Tensor, span: Tensor, steps: float, pow2_round: str) -> Tensor:
    """The float64 scale as a power of two: the smallest 2^k with 2^k * steps >= span, or 2^round(log2(scale)); exact."""
    choose("quant.weight.pow2_round", pow2_round, ("ceil", "nearest"))
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa 2^exponent, mantissa in [1/2, 1)
    unit = torch.ones_like(scale)
    if pow2_round == "nearest":
        power = torch.ldexp(unit, exponent - (mantissa < 0.5**0.5).to(exponent.dtype))
    else:
        power = torch.ldexp(unit, exponent)
        power = torch.where(power / 2 * steps >= span, power / 2, power)
        power = torch.where(power * steps < span, power * 2, power)
    if float(power.max()) > torch.finfo(torch.float32).max:
        raise UserError("tensor", f"range {float(span.max()):g}", allowed="a range whose scale float32 holds")
    return power


def fixed_point_qparams(bits: int, fraction_bits: int | None = None, *, device: torch.device | str = "cpu") -> QParams:
    """The grid of a fixed-point format, whatever the values: scale = 2^-fraction_bits, codes -2^(b-1) to 2^(b-1) - 1.

    Args:
        bits: 1 to 16, the sign bit included.
        fraction_bits: bits - 1 if None, one sign bit and the rest fraction: at 8 bits Q1.7, 128 steps to one, as in document 000.
        device: of the two 0-d tensors.

    Source: document 000.

    >>> fixed_point_qparams(8).scale == 1 / 128
    tensor(True)
    """
    check_bits("bits", bits)
    exponent = bits - 1 if fraction_bits is None else fraction_bits
    scale = torch.tensor(2.0**-exponent, device=device)
    return QParams(scale, torch.zeros_like(scale), *code_range("fixed_point", bits))


def scale_factors(minimum: Tensor, maximum: Tensor, bits: int, *, signed: bool = True, as_written: bool = False) -> Tensor:
    """Codes per unit: f = min(|quant_max / max|, |quant_min / min|), unsigned f = |quant_max / max|.

    The side of the range that would leave the codes first decides. A side that ends at zero decides nothing, and a channel of
    zeros gets 1. The document's code lets such a side decide with f = 1, so that a channel in [0, 1] has codes 0 and 1 only:
    `as_written`.

    Args:
        minimum: finite float32, 0-d or [channels].
        maximum: likewise.
        bits: 2 to 16.
        signed: codes -2^(b-1) to 2^(b-1) - 1, else 0 to 2^b - 1, where negative values become 0.
        as_written: the document's treatment of a side that ends at zero.

    Raises:
        UserError: bits out of range; all of the range is zero (unsigned: nothing is positive), unless `as_written`.

    Source: document 003, `get_sf`.

    >>> scale_factors(torch.tensor(-0.5), torch.tensor(2.0), 8)
    tensor(63.5000)
    """
    if not 2 <= bits <= 16:
        raise UserError("bits", bits, allowed="an integer from 2 to 16 for scale_factor")
    quant_min, quant_max = code_range("scale_factor", bits, signed)
    ends = [(quant_max, maximum), (quant_min, minimum)] if signed else [(quant_max, maximum)]
    if not signed and not as_written:
        ends = [(quant_max, maximum.clamp(min=0))]
    if not as_written and not any(bool(end.any()) for _, end in ends):
        if not signed and bool((minimum < 0).any()):
            raise UserError("tensor", "no element above zero", allowed="positive elements for an unsigned grid")
        raise ConstantTensorError(0.0, allowed="an element other than zero")
    idle = 1.0 if as_written else float("inf")
    sides = [
        torch.where(end == 0, torch.full_like(end, idle), (torch.full_like(end, limit) / end).abs().clamp(max=1 / MIN_SCALE))
        for limit, end in ends
    ]
    factor = torch.minimum(*sides) if signed else sides[0]
    return torch.where(torch.isinf(factor), torch.ones_like(factor), factor)
