"""Rounding to a small floating-point format, and its codes, exactly: `e4m3fn` and all that `qexp.quant.float_format` names.

A value lies in the binade of its largest power of two, whose numbers are 2^-Y of that power apart: dividing by that step is
exact, so one integer rounding decides, and multiplying back is exact too. Rejected: torch's casts to float8, of which there are
five formats and one rounding; a table of all numbers and a search, ten times as slow at 8 bits.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qexp.quant.affine import Operation
from qexp.quant.float_format import FloatFormat
from qexp.quant.rounding import half_even

_EXPONENT = 0x7F800000  # the bits of float32's exponent: alone, they are the largest power of two in a number
_FRACTION_BITS, _BIAS = 23, 127


def round_to_format(
    x: Tensor,
    element: FloatFormat,
    rounding: Operation = half_even,
    *,
    overflow: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Values -> the nearest numbers of a format.

    x^ = R(x / step) step,  step = 2^(max(floor(log2 |x|), min_exponent) - Y)

    Overflow is what lies beyond the largest number *after* rounding, as if exponents went on. Ties of `half_even` go to the even
    mantissa; a format without one (Y = 0) gives the larger number, as IEEE 754-2019, 4.3.1, for one digit. NaN stays NaN.

    Args:
        x: float32, any shape.
        element: the format.
        rounding: R, elementwise with `out=`.
        overflow: `sat`, `inf` or `nan` in place of the format's own rule.
        out: float32, where to write; may be x.

    Source: OCP 8-bit Floating Point Specification 1.0, sections 4 and 5; IEEE 754-2019, section 4.3.

    >>> from qexp.quant.float_format import parse_format
    >>> round_to_format(torch.tensor([0.3, 2.5, 3.5, 100.0]), parse_format("e2m1"))
    tensor([0.5000, 2.0000, 4.0000, 6.0000])
    """
    power = largest_power(x)
    step = power.clamp(2.0**element.min_exponent, 2.0**element.max_exponent).mul_(2.0**-element.mantissa_bits)
    if not element.subnormals:
        smallest = 2.0**element.min_exponent
        step.masked_fill_(power < smallest, smallest)
    rounded = torch.div(x, step, out=out)
    rounded = rounding(rounded, out=rounded).mul_(step)
    limit, rule = element.max_value, overflow or element.overflow
    if rule == "sat":
        rounded.clamp_(-limit, limit)
    else:
        beyond = torch.nan if rule == "nan" else torch.inf
        rounded.masked_fill_(rounded > limit, beyond).masked_fill_(rounded < -limit, -beyond)
    return rounded.add_(0.0) if element.special == "fnuz" else rounded  # -0.0 + 0.0 is 0.0


def largest_power(x: Tensor) -> Tensor:
    """2^floor(log2 |x|), float32; 0 for 0 and what is smaller than float32's normal numbers, infinity for infinities and NaN.

    >>> largest_power(torch.tensor([0.0, 0.3, -5.0]))
    tensor([0.0000, 0.2500, 4.0000])
    """
    return x.contiguous().view(torch.int32).bitwise_and(_EXPONENT).view(torch.float32)


def to_codes(values: Tensor, element: FloatFormat) -> Tensor:
    """Numbers of a format -> float32 codes: the sign times the number of the magnitude, from 0 for 0 up.

    An infinity is one more than the largest number's; NaN is -2^(bits-1), which no number has.

    Args:
        values: of `round_to_format`.
        element: the format.
    """
    largest = largest_power(values).clamp_(2.0**element.min_exponent, 2.0**element.max_exponent)
    exponents = (largest.view(torch.int32) >> _FRACTION_BITS) - _BIAS - element.min_exponent
    per_binade = 2.0**element.mantissa_bits
    numbers = (values.abs() / largest + exponents) * per_binade
    numbers.clamp_(max=element.top + 1)
    codes = numbers.copysign_(values)
    return codes.masked_fill_(values.isnan(), -(2.0 ** (element.bits - 1)))


def from_codes(codes: Tensor, element: FloatFormat) -> Tensor:
    """Codes -> numbers, the inverse of `to_codes`.

    Args:
        codes: integral.
        element: the format.

    >>> from qexp.quant.float_format import parse_format
    >>> from_codes(torch.arange(8), parse_format("e2m1"))
    tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 3.0000, 4.0000, 6.0000])
    """
    magnitudes = _numbers(element).to(codes.device)[codes.abs().long()]
    return torch.where(codes < 0, -magnitudes, magnitudes)


@lru_cache(maxsize=64)
def _numbers(element: FloatFormat) -> Tensor:
    """The magnitudes of all codes, float32 [2^(bits-1) + 1], infinities and NaN included."""
    numbers = [element.value(number) for number in range(element.top + 1)]
    numbers += [torch.inf] * (element.special == "ieee")
    numbers += [torch.nan] * (2 ** (element.bits - 1) + 1 - len(numbers))
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")
