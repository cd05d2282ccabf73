"""What anyone asks of a scheme: the row of one, torch-free; the rows themselves are in `qexp.quant.scheme_table`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from qexp.base.catalog import Info
from qexp.base.checks import check_bits
from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.float_format import format_at, parse_format

Rounding = Literal["half_even", "half_up", "half_away", "floor", "ceil", "trunc", "stochastic"]
Granularity = Literal["per_tensor", "per_channel", "per_group", "per_in_out_channel"]
ROUNDING_NAMES: tuple[Rounding, ...] = get_args(Rounding)
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
PER_BLOCK = "per_block"  # of schemes with blocks of their own, whatever `quant.weight.granularity`
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
        group_bytes: bits -> bytes stored beside the codes for each tensor, channel, group or block: scale, zero point, codebook.
        tensor_bytes: bytes stored once for a tensor beside those: a scale over the scales of its blocks.
        block: consecutive elements along the reduction that share a scale, whatever `quant.weight.granularity`; 0 where the
            setting `block_size` says how many; None where the granularity says what shares one.
        activations: may be `quant.activation.scheme`: a grid of `qexp.quant.qparams.choose_qparams`, or a
            `qexp.quant.float_quantizers.FloatQuantizer`.
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
    tensor_bytes: int
    block: int | None
    activations: bool
    onnx: bool

    @property
    def clipped(self) -> bool:
        """True where the range may be given from outside."""
        return self.ends != "none"

    @property
    def affine_activations(self) -> bool:
        """True for the grids of activations that are a scale and a zero point: what training learns and integer files hold."""
        return self.activations and self.even_steps and self.block is None

    def takes_range(self, scaled: bool) -> bool:
        """True where it has a range under `scaled`, the setting of schemes that read it."""
        return self.clipped and (scaled or "scaled" not in self.reads)

    def fixed_bits(self, format_name: str | None, key: str = "quant.weight.format") -> int | None:
        """The only width that it has, or has with the format that was typed for `key`; None where there are several."""
        if "format" in self.reads:
            return parse_format(format_name, key).bits if format_name else None
        return self.min_bits if self.min_bits == self.max_bits else None

    def block_size(self, setting: int) -> int | None:
        """Elements of a block, where `setting` is `block_size`; None where it has no blocks of its own."""
        return self.block or setting if self.block is not None else None

    def ends_of(self, signed: bool) -> Ends:
        """Which ends count under `quant.weight.signed`."""
        return self.ends if signed or "signed" not in self.reads else "upper"

    def code_range(self, bits: int, signed: bool = True) -> tuple[int, int]:
        """Smallest and largest code; `signed` is the setting, where the scheme reads it."""
        return self.codes(bits) if signed or "signed" not in self.reads else unsigned(bits)

    def codes_of(self, spec: QuantSpec) -> tuple[int, int]:
        """Smallest and largest code of a spec of this scheme, of its format where it reads one."""
        if "format" in self.reads:
            top = format_at(spec.format, spec.bits).top
            return -top, top
        return self.code_range(spec.bits, spec.signed)

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


def format_codes(name: str) -> Codes:
    """The codes of a floating-point format, as many on each side of zero: numbers of its magnitudes."""
    top = parse_format(name).top

    def codes(bits: int) -> tuple[int, int]:
        return -top, top

    codes.__name__ = name
    return codes
