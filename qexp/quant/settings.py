"""Settings of the quantizers, and what each scheme allows and reads; torch-free: a sweep is checked before torch loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qexp.base.checks import check_bits, check_range
from qexp.base.errors import UserError

SCHEME_NAMES = (
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
)
# A grid with as many codes on each side of zero, 2^(bits-1) - 1, has none at one bit; nor has torch's full one a step then.
_SIGNED = ("symmetric", "symmetric_restricted", "scale_factor", "pow2_scale", "log2", "apot", "quadratic", "ternary")
MIN_BITS = dict.fromkeys(_SIGNED, 2)
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
COMPANDED = ("log2", "quadratic")  # of these, the ones that may round in a domain where their levels are even
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
ROUNDING_NAMES = ("half_even", "half_up", "half_away", "floor", "ceil", "trunc", "stochastic")
GRANULARITIES = ("per_tensor", "per_channel", "per_group", "per_in_out_channel")
READS = {  # which schemes read a setting that most do not
    "level": COMPANDED,
    "signed": ("scale_factor",),
    "fraction_bits": ("fixed_point",),
    "pow2_round": ("pow2_scale",),
    "pin_zero": ("lut_quantile", "lut_kmeans"),
}


@dataclass(frozen=True, kw_only=True)
class WeightQuantSettings:
    """The grid of a weight.

    Args:
        granularity: what shares a range: the tensor, an output channel, `group_size` consecutive elements of an output channel,
            or the kernel between one input and one output channel, as in document 003.
        group_size: of `per_group`; the last group of a channel may be smaller.
        rounding: to codes. rounding_seed: of `stochastic`; what is drawn is a function of it and of the tensor's name.
        arithmetic: `reciprocal` multiplies by 1/scale as torch does, `divide` divides by scale as ONNX does.
        level: of `log2` and `quadratic`: `nearest` takes the nearest level, `companded` rounds the logarithm or the root.
        signed: of `scale_factor`: document 003's two forms.
        fraction_bits: of `fixed_point`: the step is 2^-fraction_bits; None takes bits - 1, document 000's Q1.7 at 8 bits.
        pow2_round: of `pow2_scale`: `ceil` never clips, `nearest` may.
        pin_zero: of the `lut` schemes: the centroid nearest to zero is zero.
    """

    granularity: Literal[GRANULARITIES] = "per_tensor"
    group_size: int = 64
    rounding: Literal[ROUNDING_NAMES] = "half_even"
    rounding_seed: int = 0
    arithmetic: Literal["reciprocal", "divide"] = "reciprocal"
    level: Literal["nearest", "companded"] = "nearest"
    signed: bool = True
    fraction_bits: int | None = None
    pow2_round: Literal["ceil", "nearest"] = "ceil"
    pin_zero: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("quant.weight.group_size", self.group_size, 2)
        check_range("quant.weight.rounding_seed", self.rounding_seed, 0, 2**63 - 1)
        check_range("quant.weight.fraction_bits", self.fraction_bits, -64, 64)


@dataclass(frozen=True, kw_only=True)
class ActivationQuantSettings:
    """The grid of an activation.

    Args:
        bits: width; None leaves activations float, but for those that a rule gives a width.
        scheme: a uniform grid. `unsigned_symmetric` takes `symmetric_restricted` where values may be negative.
        granularity: what shares a range: the tensor, or a channel, which no integer runtime multiplies.
        dynamic: the range is each batch's, found where a layer reads the value; else it is calibrated.
        places: `all` quantizes what an integer runtime holds as codes, operands of adds and concatenations too; `layers` what
            convolutions, linear layers and matrix products read. None is `layers` where `dynamic` or `qat` is on, else `all`.
        rounding: to codes.
        arithmetic: `reciprocal` multiplies by 1/scale as torch does, `divide` divides by scale as ONNX does.
    """

    bits: int | None = None
    scheme: Literal["affine", "symmetric", "symmetric_restricted", "unsigned_symmetric", "pow2_scale"] = "affine"
    granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    dynamic: bool = False
    places: Literal["all", "layers"] | None = None
    rounding: Literal["half_even", "half_up", "half_away", "floor", "ceil", "trunc"] = "half_even"
    arithmetic: Literal["reciprocal", "divide"] = "reciprocal"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("quant.activation.bits", self.bits, MIN_BITS.get(self.scheme, 1), 16)
        if self.dynamic and self.places == "all":
            remedy = "A batch's own range is found where a layer reads the value."
            raise UserError("quant.activation.places", "all", allowed="layers with quant.activation.dynamic=true", remedy=remedy)

    @property
    def layers_only(self) -> bool:
        """True where only what layers read is quantized."""
        return self.dynamic or self.places == "layers"


@dataclass(frozen=True, kw_only=True)
class QuantSettings:
    """The quantizer.

    Args:
        name: scheme of the weights. weight: its grid. activation: bits, scheme and grid of the activations.
        input: what is done to normalized images before the first layer: `none`, or `int` (truncate to integers, as document 002
            does with `input.int().float()`), or `round` (the nearest integer).
    """

    name: Literal[SCHEME_NAMES] = "linear"
    weight: WeightQuantSettings = field(default_factory=WeightQuantSettings)
    activation: ActivationQuantSettings = field(default_factory=ActivationQuantSettings)
    input: Literal["none", "int", "round"] = "none"

    def __post_init__(self) -> None:
        """Check what belongs together."""
        check_rounding(self.name, self.weight.rounding, self.weight.level)


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
