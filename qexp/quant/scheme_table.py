"""What each scheme is, allows and reads: one row for each, all that anyone asks of it; torch-free, as settings are.

Rows of floating-point formats and of blocks are in `qexp.quant.scheme_table_floats`. `check_scheme` in `qexp.quant.scheme_check`
holds the rows against their code: ours in the tests, a user's when it is read.
"""

from __future__ import annotations

from qexp.base.catalog import Catalog, import_object, is_own
from qexp.base.types import QuantSpec
from qexp.quant.scheme_info import (
    GRANULARITIES,
    PER_BLOCK,
    ROUNDING_NAMES,
    Codes,
    Ends,
    Granularity,
    Rounding,
    SchemeInfo,
    full,
    restricted,
    unsigned,
)
from qexp.quant.scheme_table_floats import FLOAT_ROWS

__all__ = [
    "GRANULARITIES", "OWN_SETTINGS", "PER_BLOCK", "ROUNDING_NAMES", "SCHEMES", "Codes", "Ends", "Granularity", "Rounding",
    "SchemeInfo", "code_range", "full", "grid_name", "represents_zero", "restricted", "scheme_name", "unsigned",
]  # fmt: skip


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
        tensor_bytes=0, block=None, covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="linear_raw", code=_EVEN + "LinearRaw",
        summary="The linear map of document 002 and rounding; the codes stay, as in that document. Networks do not survive it.",
        min_bits=1, max_bits=16, why_max="", codes=full, ends="both", undefined_on="constant", zero="never",
        rounds=True, even_steps=True, control_min_bits=1, reads=(), dequantizes=False, group_bytes=lambda bits: 8,
        tensor_bytes=0, block=None, covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="affine", code=_EVEN + "Affine",
        summary="Scale and zero point; zero is exact.",
        min_bits=1, max_bits=16, why_max="", codes=full, ends="both", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=1, reads=(), dequantizes=True, group_bytes=lambda bits: 8,
        tensor_bytes=0, block=None, covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="symmetric", code=_EVEN + "Affine",
        summary="Scale only, all 2^bits codes, scale max|x| / ((2^bits - 1) / 2) as torch's observers; zero is exact; needs at "
                "least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=full, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="symmetric_restricted", code=_EVEN + "Affine",
        summary="Scale only, codes -(2^(bits-1) - 1) to 2^(bits-1) - 1; zero is exact; needs at least 2 bits. What weights "
                "should take.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="unsigned_symmetric", code=_EVEN + "Affine",
        summary="Scale only, codes 0 to 2^bits - 1; zero is exact, and negative values become it.",
        min_bits=1, max_bits=16, why_max="", codes=unsigned, ends="upper", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=1, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="scale_factor", code=_EVEN + "ScaleFactor",
        summary="Document 003: round(clamp(x f)) / f, f from the side of the range that leaves the codes first; zero is exact; "
                "at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=full, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=("signed",), dequantizes=True, group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="pow2_scale", code=_EVEN + "Affine",
        summary="symmetric_restricted with its scale brought up to a power of two; zero is exact; needs at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=("pow2_round",), dequantizes=True,
        group_bytes=lambda bits: 1,  # an exponent
        tensor_bytes=0, block=None, covers_ends=True, activations=True, onnx=True),
    SchemeInfo(
        name="fixed_point", code=_EVEN + "FixedPoint",
        summary="A fixed-point format, whatever the values: at 8 bits Q1.7, as document 000 (which floors: "
                "quant.weight.rounding=floor); zero is exact.",
        min_bits=1, max_bits=16, why_max="", codes=full, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=True, control_min_bits=1, reads=("fraction_bits",), dequantizes=True,
        group_bytes=lambda bits: 0,  # the format is known
        tensor_bytes=0, block=None, covers_ends=False, activations=False, onnx=True),
    SchemeInfo(
        name="dorefa", code=_FITTED + "Dorefa",
        summary="Even levels of tanh(x) / max|tanh x|, from -1 to 1: networks that were not trained with it do not survive it. "
                "Zero is not a level.",
        min_bits=1, max_bits=16, why_max="", codes=unsigned, ends="none", undefined_on="zero", zero="never",
        rounds=True, even_steps=False, control_min_bits=2, reads=(), dequantizes=True,
        group_bytes=lambda bits: 4 if bits == 1 else 0,  # its values lie between -1 and 1; at one bit they have a scale
        tensor_bytes=0, block=None, covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="log2", code=_FITTED + "Log2",
        summary="Powers of two times max|x|, and zero; 2 to 8 bits.",
        min_bits=2, max_bits=8, why_max=_LOG2, codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=False, even_steps=False, control_min_bits=2, reads=("level",), dequantizes=True, group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="apot", code=_FITTED + "Apot",
        summary="Sums of powers of two times max|x|, and zero; needs at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=False, even_steps=False, control_min_bits=2, reads=(), dequantizes=True, group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="quadratic", code=_FITTED + "Quadratic",
        summary="Squares of even steps times max|x|, and zero; needs at least 2 bits.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=False, even_steps=False, control_min_bits=2, reads=("level",), dequantizes=True, group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=True, activations=False, onnx=False),
    SchemeInfo(
        name="lut_quantile", code=_FITTED + "Quantiles",
        summary="A codebook of 2^bits quantiles; zero is exact with quant.weight.pin_zero=true; at most 8 bits; no mode=float.",
        min_bits=1, max_bits=8, why_max=_CODEBOOK, codes=unsigned, ends="none", undefined_on="zero", zero="pin_zero",
        rounds=False, even_steps=False, control_min_bits=None, reads=("pin_zero",), dequantizes=True,
        group_bytes=lambda bits: 4 + 2 * 2**bits,  # a codebook is stored in fp16, relative to a float32 scale
        tensor_bytes=0, block=None, covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="lut_kmeans", code=_FITTED + "KMeans",
        summary="A codebook of 2^bits means (Lloyd-Max); zero is exact with quant.weight.pin_zero=true; at most 8 bits; "
                "no mode=float.",
        min_bits=1, max_bits=8, why_max=_CODEBOOK, codes=unsigned, ends="none", undefined_on="zero", zero="pin_zero",
        rounds=False, even_steps=False, control_min_bits=None, reads=("pin_zero",), dequantizes=True,
        group_bytes=lambda bits: 4 + 2 * 2**bits,
        tensor_bytes=0, block=None, covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="binary", code=_FITTED + "Binary",
        summary="The signs times mean|x|: bits=1 only; zero is not a level; no mode=float.",
        min_bits=1, max_bits=1, why_max="Its codes are two signs.", codes=unsigned, ends="none", undefined_on="zero",
        zero="never", rounds=False, even_steps=False, control_min_bits=None, reads=(), dequantizes=True,
        group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=False, activations=False, onnx=False),
    SchemeInfo(
        name="ternary", code=_FITTED + "Ternary",
        summary="-a, 0 and a, a the mean of the magnitudes above 0.7 mean|x|: bits=2 only; no mode=float.",
        min_bits=2, max_bits=2, why_max="Its codes are -1, 0 and 1.", codes=restricted, ends="none", undefined_on="zero",
        zero="always", rounds=False, even_steps=False, control_min_bits=None, reads=(), dequantizes=True,
        group_bytes=lambda bits: 4,
        tensor_bytes=0, block=None, covers_ends=False, activations=False, onnx=False),
    *FLOAT_ROWS,
], check=_check)
# fmt: on
# The settings that some schemes read and others do not, in the order of the plan's notes.
OWN_SETTINGS = ("level", "signed", "fraction_bits", "pow2_round", "pin_zero", "format", "scaled", "block_size")


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


def grid_name(spec: QuantSpec) -> str:
    """`scheme_name`, and the format where one is read: `minifloat e4m3fn`."""
    name = scheme_name(spec.scheme)
    return f"{name} {spec.format}" if spec.format else name
