"""Names of quantizers and settings, and what each scheme allows and reads; torch-free, as settings are."""

from __future__ import annotations

from typing import Literal, get_args

from qexp.base.checks import check_bits
from qexp.base.errors import UserError

SchemeName = Literal[
    "linear",
    "linear_raw",
    "affine",
    "symmetric",
    "symmetric_restricted",
    "unsigned_symmetric",
    "scale_factor",
    "pow2_scale",
    "fixed_point",
    "dorefa",
    "log2",
    "apot",
    "quadratic",
    "lut_quantile",
    "lut_kmeans",
    "binary",
    "ternary",
]
Rounding = Literal["half_even", "half_up", "half_away", "floor", "ceil", "trunc", "stochastic"]
Granularity = Literal["per_tensor", "per_channel", "per_group", "per_in_out_channel"]
SCHEME_NAMES: tuple[SchemeName, ...] = get_args(SchemeName)
ROUNDING_NAMES: tuple[Rounding, ...] = get_args(Rounding)
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
# A grid with as many codes on each side of zero, 2^(bits-1) - 1, has none at one bit; nor has torch's full one a step then.
_SIGNED = ("symmetric", "symmetric_restricted", "scale_factor", "pow2_scale", "log2", "apot", "quadratic", "ternary")
MIN_BITS: dict[str, int] = dict.fromkeys(_SIGNED, 2)
MAX_BITS = {"log2": 8, "lut_quantile": 8, "lut_kmeans": 8, "binary": 1, "ternary": 2}
_WHY_MAX = {
    "log2": "At 9 bits its smallest level would be 2^-254 of its largest, which float32 does not hold.",
    "lut_quantile": "Its codebook has 2^bits values for each tensor, channel or group.",
    "lut_kmeans": "Its codebook has 2^bits values for each tensor, channel or group.",
    "binary": "Its codes are two signs.",
    "ternary": "Its codes are -1, 0 and 1.",
}
NO_CONTROL = ("lut_quantile", "lut_kmeans", "binary", "ternary")  # their map exists on codes only: no mode=float
NEAREST_LEVEL = ("log2", "apot", "quadratic", *NO_CONTROL)  # schemes that choose a level instead of rounding a number
COMPANDED: tuple[SchemeName, ...] = (
    "log2",
    "quadratic",
)  # of these, the ones that may round in a domain where their levels are even
CLIPPED = (  # schemes whose range may be given from outside
    "linear",
    "linear_raw",
    "affine",
    "symmetric",
    "symmetric_restricted",
    "unsigned_symmetric",
    "scale_factor",
    "pow2_scale",
    "log2",
    "apot",
    "quadratic",
)
UNSIGNED = ("unsigned_symmetric",)  # negative values become 0; `scale_factor` too where signed is false
READS: dict[str, tuple[SchemeName, ...]] = {  # which schemes read a setting that most do not
    "level": COMPANDED,
    "signed": ("scale_factor",),
    "fraction_bits": ("fixed_point",),
    "pow2_round": ("pow2_scale",),
    "pin_zero": ("lut_quantile", "lut_kmeans"),
}


def check_width(scheme: str, bits: int) -> None:
    """Raise UserError unless the scheme is defined at that width."""
    check_bits("bits", bits)
    low, high = MIN_BITS.get(scheme, 1), MAX_BITS.get(scheme, 16)
    if not low <= bits <= high:
        allowed = f"exactly {low}" if low == high else f"at least {low}" if bits < low else f"at most {high}"
        remedy = _WHY_MAX.get(scheme, "") if bits > high else ""
        raise UserError("bits", bits, allowed=f"{allowed} for quant={scheme}", remedy=remedy)


def check_control(scheme: str, mode: str, bits: int) -> None:
    """Raise UserError for the control of a scheme that has none."""
    if mode == "float" and (scheme in NO_CONTROL or (scheme == "dorefa" and bits == 1)):
        where = f"quant={scheme}" + (" at 1 bit" if scheme == "dorefa" else "")
        raise UserError("mode", mode, allowed=f"int for {where}", remedy="Its map exists on codes only.")


def check_rounding(scheme: str, rounding: str, level: str) -> None:
    """Raise UserError for a rounding that the scheme would not use."""
    companded = scheme in COMPANDED and level == "companded"
    if scheme in NEAREST_LEVEL and not companded and rounding != "half_even":
        remedy = "It takes the nearest of its levels." if scheme in READS["level"] else "It does not round to integers."
        if scheme in COMPANDED:
            remedy += " quant.weight.level=companded rounds."
        raise UserError("quant.weight.rounding", rounding, allowed=f"half_even for quant={scheme}", remedy=remedy)


def code_range(scheme: str, bits: int, signed: bool = True) -> tuple[int, int]:
    """Smallest and largest code.

    >>> code_range("affine", 8), code_range("symmetric_restricted", 4), code_range("lut_kmeans", 2)
    ((-128, 127), (-7, 7), (0, 3))
    """
    half = 2 ** (bits - 1)
    if scheme in ("unsigned_symmetric", "dorefa", "lut_quantile", "lut_kmeans", "binary") or (
        scheme == "scale_factor" and not signed
    ):
        return 0, 2 * half - 1
    full = scheme in ("linear", "linear_raw", "affine", "symmetric", "scale_factor", "fixed_point")
    return -half if full else 1 - half, half - 1
