"""What each scheme is, allows and reads: one row for each, all that anyone asks of it; torch-free, as settings are.

`check_scheme` in `qexp.quant.scheme_check` holds the rows against their code: ours in the tests, a user's when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from qexp.base.catalog import Catalog, Info, import_object, is_own
from qexp.base.checks import check_bits
from qexp.base.errors import UserError
from qexp.base.types import QuantSpec

Rounding = Literal["half_even", "half_up", "half_away", "floor", "ceil", "trunc", "stochastic"]
Granularity = Literal["per_tensor", "per_channel", "per_group", "per_in_out_channel"]
ROUNDING_NAMES: tuple[Rounding, ...] = get_args(Rounding)
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
Ends = Literal["both", "magnitude", "upper", "none"]
Codes = Callable[[int], tuple[int, int]]  # bits -> smallest and largest code


@dataclass(frozen=True, kw_only=True)
class SchemeInfo(Info):
    """A way to map values to codes and back; `code` is its `qexp.quant.quantizer.Quantizer`.

    Args:
        min_bits: smallest width. A grid with 2^(bits-1) - 1 codes on each side of zero has none at one bit.
        max_bits: largest width, at most 16.
        why_max: why no larger one, a sentence; empty where that is 16.
        codes: `full`, `restricted` or `unsigned`, or a function of bits that gives the smallest and the largest code.
        ends: which ends of a range count: `both`, each for itself; the larger `magnitude` of the two; the `upper` alone, where
            negative values become 0; `none` where a range cannot be given from outside (by `calibrate.weights`, say).
        undefined_on: tensors that it has no parameters for: `constant` ones, of `zero` alone (which are refused before it is
            asked), or `nothing`.
        zero: whether 0 maps to 0 exactly: `always`, `never`, or with the setting `pin_zero`.
        rounds: rounds a number, so that `quant.weight.rounding` has a say; otherwise it picks a level. One that reads `level`
            rounds where that is `companded`.
        even_steps: neighbouring codes stand for values one step apart, and a value is rounded between them: what `calibrate=kl`
            and AdaRound reckon with.
        covers_ends: at every width what lies at an end of the range that counts comes back to half a step. Otherwise it is cut
            off, as by a codebook of means or a format that knows no range, or the copy is on another scale.
        control_min_bits: from which width on it has a control, mode `float`: the same map without its rounding; None has none.
        reads: settings of `quant.weight` that most schemes do not read.
        dequantizes: the copy holds values; otherwise the codes themselves.
        group_bytes: bits -> bytes stored beside the codes for each tensor, channel or group: scale, zero point, codebook.
        activations: may be `quant.activation.scheme`: a grid of `qexp.quant.qparams.choose_qparams`.
        onnx: a file can hold it: value = (code - zero_point) * scale, parameters of these names, as ONNX's QuantizeLinear.
    """

    min_bits: int
    max_bits: int
    why_max: str
    codes: Codes
    ends: Ends
    undefined_on: Literal["constant", "zero", "nothing"]
    zero: Literal["always", "never", "pin_zero"]
    rounds: bool
    even_steps: bool
    covers_ends: bool
    control_min_bits: int | None
    reads: tuple[str, ...]
    dequantizes: bool
    group_bytes: Callable[[int], int]
    activations: bool
    onnx: bool

    @property
    def clipped(self) -> bool:
        """True where the range may be given from outside."""
        return self.ends != "none"

    def ends_of(self, signed: bool) -> Ends:
        """Which ends count under `quant.weight.signed`."""
        return self.ends if signed or "signed" not in self.reads else "upper"

    def code_range(self, bits: int, signed: bool = True) -> tuple[int, int]:
        """Smallest and largest code; `signed` is the setting, where the scheme reads it."""
        return self.codes(bits) if signed or "signed" not in self.reads else unsigned(bits)

    def check_width(self, bits: int, key: str = "bits") -> None:
        """Raise UserError unless the scheme is defined at that width, which was typed for `key`."""
        check_bits(key, bits)
        low, high = self.min_bits, self.max_bits
        if not low <= bits <= high:
            allowed = f"exactly {low}" if low == high else f"at least {low}" if bits < low else f"at most {high}"
            remedy = self.why_max if bits > high else ""
            raise UserError(key, bits, allowed=f"{allowed} for quant={self.name}", remedy=remedy)

    def check_control(self, mode: str, bits: int) -> None:
        """Raise UserError for the control of a scheme that has none."""
        least = self.control_min_bits
        if mode == "float" and (least is None or bits < least):
            where = "" if least is None else f" at {bits} bit{'s' if bits > 1 else ''}"
            raise UserError("mode", mode, allowed=f"int for quant={self.name}{where}", remedy="Its map exists on codes only.")

    def check_rounding(self, rounding: str, level: str) -> None:
        """Raise UserError for a rounding that the scheme would not use."""
        compands = "level" in self.reads
        if rounding != "half_even" and not self.rounds and not (compands and level == "companded"):
            remedy = "It does not round to integers."
            if compands:
                remedy = "It takes the nearest of its levels. quant.weight.level=companded rounds."
            raise UserError("quant.weight.rounding", rounding, allowed=f"half_even for quant={self.name}", remedy=remedy)


def full(bits: int) -> tuple[int, int]:
    """All signed codes of a width, -2^(bits-1) to 2^(bits-1) - 1."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def restricted(bits: int) -> tuple[int, int]:
    """As many codes on each side of zero, -(2^(bits-1) - 1) to 2^(bits-1) - 1."""
    return 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1


def unsigned(bits: int) -> tuple[int, int]:
    """Codes from 0 to 2^bits - 1."""
    return 0, 2**bits - 1


def _check(row: SchemeInfo, code: object) -> None:
    """`check_scheme`, which runs the code and so needs torch."""
    check = import_object("qexp.quant.scheme_check:check_scheme")
    assert callable(check)
    check(row, code)


_CODEBOOK = "Its codebook has 2^bits values for each tensor, channel or group."
_LOG2 = "At 9 bits its smallest level would be 2^-254 of its largest, which float32 does not hold."
_EVEN, _FITTED = "qexp.quant.quantizers:", "qexp.quant.quantizers_levels:"  # even steps; levels, fitted or from a table

# fmt: off
SCHEMES = Catalog("quant", SchemeInfo, [
    SchemeInfo(
        name="linear", code=_EVEN + "Linear",
        summary="The linear map of document 002 over each tensor's own range, rounding, and its inverse.",
        min_bits=1, max_bits=16, why_max="", codes=full, ends="both", undefined_on="constant", zero="never",
        rounds=True, even_steps=True, control_min_bits=1, reads=(), dequantizes=True, group_bytes=lambda bits: 8,
        covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="linear_raw", code=_EVEN + "LinearRaw",
        summary="The linear map of document 002 and rounding; the codes stay, as in that document. Networks do not survive it.",
        min_bits=1, max_bits=16, why_max="", codes=full, ends="both", undefined_on="constant", zero="never",
        rounds=True, even_steps=True, control_min_bits=1, reads=(), dequantizes=False, group_bytes=lambda bits: 8,
        covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="affine", code=_EVEN + "Affine",
        summary="Scale and zero point; zero is exact.",
        min_bits=1, max_bits=16, why_max="", codes=full, ends="both", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=1, reads=(), dequantizes=True, group_bytes=lambda bits: 8,
        covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="symmetric", code=_EVEN + "Affine",
        summary="Scale only, all 2^bits codes, scale max|x| / ((2^bits - 1) / 2) as torch's observers; zero is exact; needs at "
                "least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=full, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="symmetric_restricted", code=_EVEN + "Affine",
        summary="Scale only, codes -(2^(bits-1) - 1) to 2^(bits-1) - 1; zero is exact; needs at least 2 bits. What weights "
                "should take.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="unsigned_symmetric", code=_EVEN + "Affine",
        summary="Scale only, codes 0 to 2^bits - 1; zero is exact, and negative values become it.",
        min_bits=1, max_bits=16, why_max="", codes=unsigned, ends="upper", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=1, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="scale_factor", code=_EVEN + "ScaleFactor",
        summary="Document 003: round(clamp(x f)) / f, f from the side of the range that leaves the codes first; zero is exact; "
                "at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=full, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=("signed",), dequantizes=True, group_bytes=lambda bits: 4,
        covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="pow2_scale", code=_EVEN + "Affine",
        summary="symmetric_restricted with its scale brought up to a power of two; zero is exact; needs at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=("pow2_round",), dequantizes=True,
        group_bytes=lambda bits: 1,  # an exponent
        covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="fixed_point", code=_EVEN + "FixedPoint",
        summary="A fixed-point format, whatever the values: at 8 bits Q1.7, as document 000 (which floors: "
                "quant.weight.rounding=floor); zero is exact.",
        min_bits=1, max_bits=16, why_max="", codes=full, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=True, control_min_bits=1, reads=("fraction_bits",), dequantizes=True,
        group_bytes=lambda bits: 0,  # the format is known
        covers_ends=False, activations=False, onnx=True),
    SchemeInfo(
        name="dorefa", code=_FITTED + "Dorefa",
        summary="Even levels of tanh(x) / max|tanh x|, from -1 to 1: networks that were not trained with it do not survive it. "
                "Zero is not a level.",
        min_bits=1, max_bits=16, why_max="", codes=unsigned, ends="none", undefined_on="zero", zero="never",
        rounds=True, even_steps=False, control_min_bits=2, reads=(), dequantizes=True,
        group_bytes=lambda bits: 4 if bits == 1 else 0,  # its values lie between -1 and 1; at one bit they have a scale
        covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="log2", code=_FITTED + "Log2",
        summary="Powers of two times max|x|, and zero; 2 to 8 bits.",
        min_bits=2, max_bits=8, why_max=_LOG2, codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=False, even_steps=False, control_min_bits=2, reads=("level",), dequantizes=True, group_bytes=lambda bits: 4,
        covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="apot", code=_FITTED + "Apot",
        summary="Sums of powers of two times max|x|, and zero; needs at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=False, even_steps=False, control_min_bits=2, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="quadratic", code=_FITTED + "Quadratic",
        summary="Squares of even steps times max|x|, and zero; needs at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=False, even_steps=False, control_min_bits=2, reads=("level",), dequantizes=True, group_bytes=lambda bits: 4,
        covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="lut_quantile", code=_FITTED + "Quantiles",
        summary="A codebook of 2^bits quantiles; zero is exact with quant.weight.pin_zero=true; at most 8 bits; no mode=float.",
        min_bits=1, max_bits=8, why_max=_CODEBOOK, codes=unsigned, ends="none", undefined_on="zero", zero="pin_zero",
        rounds=False, even_steps=False, control_min_bits=None, reads=("pin_zero",), dequantizes=True,
        group_bytes=lambda bits: 4 + 2 * 2**bits,  # a codebook is stored in fp16, relative to a float32 scale
        covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="lut_kmeans", code=_FITTED + "KMeans",
        summary="A codebook of 2^bits means (Lloyd-Max); zero is exact with quant.weight.pin_zero=true; at most 8 bits; "
                "no mode=float.",
        min_bits=1, max_bits=8, why_max=_CODEBOOK, codes=unsigned, ends="none", undefined_on="zero", zero="pin_zero",
        rounds=False, even_steps=False, control_min_bits=None, reads=("pin_zero",), dequantizes=True,
        group_bytes=lambda bits: 4 + 2 * 2**bits,
        covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="binary", code=_FITTED + "Binary",
        summary="The signs times mean|x|: bits=1 only; zero is not a level; no mode=float.",
        min_bits=1, max_bits=1, why_max="Its codes are two signs.", codes=unsigned, ends="none", undefined_on="zero",
        zero="never", rounds=False, even_steps=False, control_min_bits=None, reads=(), dequantizes=True,
        group_bytes=lambda bits: 4,
        covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="ternary", code=_FITTED + "Ternary",
        summary="-a, 0 and a, a the mean of the magnitudes above 0.7 mean|x|: bits=2 only; no mode=float.",
        min_bits=2, max_bits=2, why_max="Its codes are -1, 0 and 1.", codes=restricted, ends="none", undefined_on="zero",
        zero="always", rounds=False, even_steps=False, control_min_bits=None, reads=(), dequantizes=True,
        group_bytes=lambda bits: 4,
        covers_ends=False, activations=False, onnx=False),
], check=_check)
# fmt: on
# The settings that some schemes read and others do not, in the order of the plan's notes.
OWN_SETTINGS = ("level", "signed", "fraction_bits", "pow2_round", "pin_zero")


def code_range(scheme: str, bits: int, signed: bool = True) -> tuple[int, int]:
    """Smallest and largest code.

    >>> code_range("affine", 8), code_range("symmetric_restricted", 4), code_range("lut_kmeans", 2)
    ((-128, 127), (-7, 7), (0, 3))
    """
    return SCHEMES[scheme].code_range(bits, signed)


def represents_zero(spec: QuantSpec) -> bool:
    """True where 0 is a value of every grid that the spec makes, so that zeros stay zeros.

    >>> represents_zero(QuantSpec(scheme="lut_kmeans", bits=4, pin_zero=True))
    True
    """
    zero = "always" if spec.mode == "half" else SCHEMES[spec.scheme].zero
    return zero == "always" or (zero == "pin_zero" and spec.pin_zero)


def scheme_name(scheme: str) -> str:
    """What people read of a spec's scheme: of a user's own the name of its row, not where its file lies."""
    return SCHEMES[scheme].name if is_own(scheme) else scheme
