"""The quantizer of single numbers of document 004, and what it leaves out: the range that it claims."""

from __future__ import annotations

import math

from qexp.base.errors import UserError


def quantize_scalar(value: float, bits: int, *, as_written: bool = False) -> int:
    """Code of a number between -1 and 1: round(x (2^(b-1) - 1)), ties to even.

    The document says that values lie in [-1, 1] and shows 3.14159..., whose code 22 no 4-bit integer holds: `as_written` computes
    it so, otherwise such a value is refused.

    Args:
        value: the number.
        bits: 2 to 16.
        as_written: no check of the range.

    Raises:
        UserError: bits out of range, a value outside [-1, 1] or not a number.

    Source: document 004, `Quantization.quantize`.

    >>> quantize_scalar(-0.5, 4), quantize_scalar(math.pi, 4, as_written=True)
    (-4, 22)
    """
    _check_bits(bits)
    if not math.isfinite(value) or (abs(value) > 1 and not as_written):
        remedy = "Divide by the largest magnitude first; its code would not fit the width."
        raise UserError("value", value, allowed="a number from -1 to 1", remedy=remedy)
    return round(value * (2 ** (bits - 1) - 1))


def dequantize_scalar(code: int, bits: int) -> float:
    """The number of a code: x = code / (2^(b-1) - 1).

    >>> dequantize_scalar(22, 4)
    3.142857142857143
    """
    _check_bits(bits)
    return code / (2 ** (bits - 1) - 1)


def _check_bits(bits: int) -> None:
    """One bit has no step."""
    if not 2 <= bits <= 16:
        raise UserError("bits", bits, allowed="an integer from 2 to 16")
