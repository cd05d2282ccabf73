"""Small floating-point formats by name, `e4m3fn` or any other `eXmY`; torch-free, as settings are.

    eXmY[bB][ieee|fn|fnuz|f][_nosub][_sat|_inf|_nan]

A format has a sign, X bits of exponent and Y of mantissa; its name states the rest. Names mean what `ml_dtypes`, torch and the
OCP standards mean by them, but for the overflow rule, on which these differ and which is therefore part of the name:

- `ieee`: the largest exponent is for infinities and NaN, as of IEEE 754's own formats. Plain names of 8 bits and more mean this
  (`e5m2`, `e3m4`, `e5m10`).
- `f`: neither infinities nor NaN. Plain names below 8 bits mean this: OCP's FP6 and FP4 (`e2m3`, `e3m2`, `e2m1`).
- `fn`: no infinities, and the code of all ones is NaN (`e4m3fn`); below 8 bits it means `f`, as in `ml_dtypes`' float4_e2m1fn.
- `fnuz`: no infinities and no negative zero, whose code is NaN; the bias is one more.
- `bB`: the exponent's bias is B, where it is not 2^(X-1) - 1 (`fnuz`: 2^(X-1)).
- `_nosub`: no subnormals: below the smallest normal number there is 0 alone.
- overflow, of what would round beyond the largest number, infinities too: `_sat` gives that number, `_inf` infinity, `_nan` NaN.
  Left out, it is `_inf` where there are infinities and `_sat` elsewhere. So torch's cast to float8_e4m3fn is `e4m3fn` and
  that of `ml_dtypes` `e4m3fn_nan`; both mean `e5m2` and `e5m2fnuz_nan`; their casts to FP6 and FP4 saturate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from qexp.base.errors import UserError

Special = Literal["ieee", "fn", "fnuz", "f"]
Overflow = Literal["sat", "inf", "nan"]
MIN_BITS, MAX_BITS = 3, 16

_NAME = re.compile(r"e([1-8])m(\d\d?)(?:b(\d+))?(ieee|fnuz|fn|f)?(_nosub)?(?:_(sat|inf|nan))?")
_GRAMMAR = "eXmY[bB][ieee|fn|fnuz|f][_nosub][_sat|_inf|_nan], of 2 to 16 bits within float32: e4m3fn, e5m2, e2m1, e3m4_sat"


@dataclass(frozen=True)
class FloatFormat:
    """A sign, an exponent and a mantissa; magnitudes are numbered from 0 up, as their codes are.

    Args:
        exponent_bits: X.
        mantissa_bits: Y.
        bias: what is subtracted from the exponent's code.
        special: which codes are no numbers.
        subnormals: exponent code 0 holds numbers below the smallest normal one, else 0 alone.
        overflow: what becomes of what would round beyond the largest number.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    special: Special
    subnormals: bool
    overflow: Overflow

    @property
    def bits(self) -> int:
        """Width of a code, 1 + X + Y."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def has_nan(self) -> bool:
        """True where a code is NaN."""
        return self.special != "f"

    @property
    def top(self) -> int:
        """Number of the largest magnitude, as the codes 0, 1, ... go up.

        >>> parse_format("e4m3fn").top, parse_format("e5m2").top, parse_format("e2m1").top
        (126, 123, 7)
        """
        all_ones = 2 ** (self.bits - 1) - 1
        if self.special == "ieee":
            return int(all_ones - 2**self.mantissa_bits)
        return all_ones - (self.special == "fn")

    @property
    def min_exponent(self) -> int:
        """Of the smallest normal number, 1 - bias."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Of the largest number: 2^max_exponent is the largest power of two that the format holds."""
        return max(self.top >> self.mantissa_bits, 1) - self.bias

    @property
    def max_value(self) -> float:
        """The largest number.

        >>> [parse_format(name).max_value for name in ("e4m3fn", "e5m2", "e3m4", "e2m3", "e3m2", "e2m1", "e5m10")]
        [448.0, 57344.0, 15.5, 7.5, 28.0, 6.0, 65504.0]
        """
        return self.value(self.top)

    def value(self, number: int) -> float:
        """What the magnitude of a number stands for; a code that `_nosub` leaves without one stands for 0."""
        exponent, fraction = number >> self.mantissa_bits, number % 2**self.mantissa_bits
        if not exponent and not self.subnormals:
            return 0.0
        return float(
            (fraction + (2**self.mantissa_bits if exponent else 0)) * 2.0 ** (max(exponent, 1) - self.bias - self.mantissa_bits)
        )

    @property
    def name(self) -> str:
        """The name that states what the rules do not: two names of one format have the same.

        >>> parse_format("e4m3fn_sat").name, parse_format("e2m1fn").name, parse_format("e5m2ieee_sat").name
        ('e4m3fn', 'e2m1', 'e5m2_sat')
        """
        parts = [f"e{self.exponent_bits}m{self.mantissa_bits}"]
        parts += [f"b{self.bias}"] if self.bias != _bias(self.exponent_bits, self.special) else []
        parts += [self.special] if self.special != _special(self.bits) else []
        parts += ["_nosub"] if not self.subnormals else []
        parts += [f"_{self.overflow}"] if self.overflow != _overflow(self.special) else []
        return "".join(parts)


_NAN_BITS = 8  # from this width on `fn` has a NaN, and a plain name is IEEE's


def _special(bits: int) -> Special:
    return "ieee" if bits >= _NAN_BITS else "f"


def _bias(exponent_bits: int, special: Special) -> int:
    return int(2 ** (exponent_bits - 1)) - (special != "fnuz")


def _overflow(special: Special) -> Overflow:
    return "inf" if special == "ieee" else "sat"


@lru_cache(maxsize=256)
def parse_format(name: str, key: str = "quant.weight.format") -> FloatFormat:
    """The format of a name.

    Args:
        name: as the module says.
        key: for which it was given.

    Raises:
        UserError: no such name; more than 16 bits, or numbers that float32 does not hold; an overflow that it cannot have.

    >>> parse_format("e4m3fn_nan")
    FloatFormat(exponent_bits=4, mantissa_bits=3, bias=7, special='fn', subnormals=True, overflow='nan')
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(key, name, allowed=_GRAMMAR)
    exponent_bits, mantissa_bits = int(match[1]), int(match[2])
    bits = 1 + exponent_bits + mantissa_bits
    special = cast("Special", match[4] or _special(bits))
    special = "f" if special == "fn" and bits < _NAN_BITS else special
    bias = _bias(exponent_bits, special) if match[3] is None else int(match[3])
    overflow = cast("Overflow", match[6] or _overflow(special))
    made = FloatFormat(exponent_bits, mantissa_bits, bias, special, not match[5], overflow)
    if bits > MAX_BITS or made.top < 1 or not (made.subnormals or made.top >> mantissa_bits):
        raise UserError(
            key, name, allowed=_GRAMMAR, remedy=f"It has {bits} bits." if bits > MAX_BITS else "It has no number but 0."
        )
    if made.min_exponent < -126 or made.min_exponent - mantissa_bits < -149 or made.max_exponent > 127:
        raise UserError(key, name, allowed=_GRAMMAR, remedy="float32, which is computed in, does not hold its numbers.")
    if (overflow == "inf" and special != "ieee") or (overflow == "nan" and not made.has_nan):
        remedy = f"It has no {'infinities' if overflow == 'inf' else 'NaN'}."
        raise UserError(key, name, allowed=f"an overflow that the format has, {name.rpartition('_')[0]}_sat", remedy=remedy)
    return made


def default_format(bits: int) -> str:
    """The format of a width where none is named: `e2m1` at 4 bits, `e2m3` at 6, `e4m3fn` at 8, fp16's `e5m10` at 16.

    2 bits of exponent up to 6 bits, 4 up to 10, 5 above; finite up to 10 bits.

    >>> [default_format(bits) for bits in (3, 4, 6, 7, 8, 10, 16)]
    ['e2m0', 'e2m1', 'e2m3', 'e4m2', 'e4m3fn', 'e4m5fn', 'e5m10']
    """
    exponent_bits = 2 if bits <= 6 else 4 if bits <= 10 else 5
    return f"e{exponent_bits}m{bits - 1 - exponent_bits}" + ("fn" if _NAN_BITS <= bits <= 10 else "")


def format_at(name: str | None, bits: int, key: str = "quant.weight.format") -> FloatFormat:
    """The format that a setting means at a width: what it names, or the default of the width.

    Args:
        name: the setting; None or empty where none is named.
        bits: width, 3 to 16.
        key: of the setting.

    Raises:
        UserError: no such name, or a format of another width.
    """
    if not name:
        return parse_format(default_format(bits), key)
    made = parse_format(name, key)
    if made.bits != bits:
        remedy = f"{name} has {made.bits} bits: leave the width out, or the format, which is {default_format(bits)} then."
        raise UserError(key, name, allowed=f"a format of {bits} bits", remedy=remedy)
    return made
