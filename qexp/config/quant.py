"""Settings of quantizers, `quant.*`: how weights and activations become codes. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

from annotated_types import Ge, Le

from qexp.base.checks import Seed, check_bounds, check_range
from qexp.base.errors import UserError, choose
from qexp.base.user_source import source_hash
from qexp.config.later import later
from qexp.config.read_where import ReadWhere
from qexp.quant.float_format import format_at, parse_format
from qexp.quant.scheme_table import SCHEMES, Granularity, Rounding, SchemeInfo

Arithmetic = Literal["reciprocal", "divide"]
BLOCK_SIZE = 32  # of `bfp`, as OCP's formats have it
BlockSize = Annotated[int, Ge(2), Le(65_536)]


@dataclass(frozen=True, kw_only=True)
class WeightQuantSettings:
    """The grid of a weight.

    Args:
        granularity: what shares a range: the tensor, an output channel, `group_size` consecutive elements of an output channel,
            or the kernel between one input and one output channel, as in document 003.
        group_size: of `per_group`; the last group of a channel may be smaller.
        rounding: to codes.
        rounding_seed: of `stochastic`; what is drawn is a function of it and of the tensor's name.
        arithmetic: `reciprocal` multiplies by 1/scale as torch does, `divide` divides by scale as ONNX does.
        level: of `log2` and `quadratic`: `nearest` takes the nearest level, `companded` rounds the logarithm or the root.
        signed: of `scale_factor`: document 003's two forms.
        fraction_bits: of `fixed_point`: the step is 2^-fraction_bits; None takes bits - 1, document 000's Q1.7 at 8 bits.
        pow2_round: of `pow2_scale`: `ceil` never clips, `nearest` may.
        pin_zero: of the `lut` schemes: the centroid nearest to zero is zero.
        format: of `minifloat`: a name of `qexp.quant.float_format`, whose width it sets; None takes the default of `bits`.
        scaled: of `minifloat`: the largest magnitude becomes the format's largest number; false takes values as they are, with
            the overflow that the format's name says.
        block_size: of `bfp`: consecutive elements along the reduction that share a scale.
    """

    granularity: Granularity = "per_tensor"
    group_size: Annotated[int, Ge(2), ReadWhere("granularity", "per_group")] = 64
    rounding: Rounding = "half_even"
    rounding_seed: Annotated[Seed, ReadWhere("rounding", "stochastic")] = 0
    arithmetic: Arithmetic = "reciprocal"
    level: Literal["nearest", "companded"] = "nearest"
    signed: bool = True
    fraction_bits: Annotated[int, Ge(-64), Le(64)] | None = None
    pow2_round: Literal["ceil", "nearest"] = "ceil"
    pin_zero: bool = False
    format: str | None = later(None)
    scaled: bool = later(True)
    block_size: BlockSize = later(BLOCK_SIZE)

    def __post_init__(self) -> None:
        """Check the ranges, and that there is such a format."""
        check_bounds(self, "quant.weight")
        if self.format is not None:
            parse_format(self.format, "quant.weight.format")


@dataclass(frozen=True, kw_only=True)
class ActivationQuantSettings:
    """The grid of an activation.

    Args:
        bits: width; None leaves activations float, but for those that a rule gives a width. A scheme or format that has one width
            alone sets it.
        scheme: one whose row says `activations`. `unsigned_symmetric` takes `symmetric_restricted` where values may be negative.
        granularity: what shares a range: the tensor, or a channel, which no integer runtime multiplies.
        dynamic: the range is each batch's, found where a layer reads the value; else it is calibrated. Set by schemes that take
            no range: with blocks, whose scales are their values' own, or unscaled.
        places: `all` quantizes what an integer runtime holds as codes, operands of adds and concatenations too; `layers` what
            convolutions, linear layers and matrix products read. None is `layers` where `dynamic` or `qat` is on, else `all`.
        rounding: to codes.
        arithmetic: `reciprocal` multiplies by 1/scale as torch does, `divide` divides by scale as ONNX does.
        format: of `minifloat`, as for weights.
        scaled: of `minifloat`, as for weights.
        block_size: of `bfp`: consecutive channels that share a scale.
    """

    bits: int | None = None
    scheme: str = "affine"
    granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    dynamic: bool = False
    places: Literal["all", "layers"] | None = None
    rounding: Literal["half_even", "half_up", "half_away", "floor", "ceil", "trunc"] = "half_even"
    arithmetic: Arithmetic = "reciprocal"
    format: str | None = later(None)
    scaled: bool = later(True)
    block_size: BlockSize = later(BLOCK_SIZE)

    def __post_init__(self) -> None:
        """Check the ranges, and take what the scheme says: its width where it has one alone, and whether it has a range."""
        choose("quant.activation.scheme", self.scheme, SCHEMES.names_where(lambda row: row.activations))
        check_bounds(self, "quant.activation")
        if self.bits is None:
            object.__setattr__(self, "bits", self.row.fixed_bits(self.format, "quant.activation.format"))
        if self.bits is not None and self.row.min_bits == self.row.max_bits != self.bits:
            allowed = f"{self.row.min_bits}, or left out, with quant.activation.scheme={self.scheme}"
            raise UserError("quant.activation.bits", self.bits, allowed=allowed)
        check_range("quant.activation.bits", self.bits, self.row.min_bits, 16)
        if self.format is not None:
            parse_format(self.format, "quant.activation.format")
        if self.bits is not None and "format" in self.row.reads:
            format_at(self.format, self.bits, "quant.activation.format")
        if self.row.block is not None and self.granularity != "per_tensor":
            remedy = f"Its scales are those of blocks of {self.row.block_size(self.block_size)} channels."
            allowed = f"per_tensor, which is not read, with quant.activation.scheme={self.scheme}"
            raise UserError("quant.activation.granularity", self.granularity, allowed=allowed, remedy=remedy)
        if not self.row.takes_range(self.scaled):
            object.__setattr__(self, "dynamic", True)
        if self.dynamic and self.places == "all":
            remedy = "A batch's own range is found where a layer reads the value."
            if not self.row.takes_range(self.scaled):
                allowed = f"layers with quant.activation.scheme={self.scheme}"
                remedy = "What layers multiply has this format; sums of their results have none."
                raise UserError("quant.activation.places", "all", allowed=allowed, remedy=remedy)
            raise UserError("quant.activation.places", "all", allowed="layers with quant.activation.dynamic=true", remedy=remedy)

    @property
    def row(self) -> SchemeInfo:
        """All there is to know of the scheme."""
        return SCHEMES[self.scheme]

    @property
    def layers_only(self) -> bool:
        """True where only what layers read is quantized."""
        return self.dynamic or self.places == "layers"


@dataclass(frozen=True, kw_only=True)
class QuantSettings:
    """The quantizer.

    Args:
        name: scheme of the weights, or `custom`.
        factory: `package.module:function` or `file.py:function` for `custom`; returns a `qexp.quant.scheme_table.SchemeInfo`.
        weight: grid of the weights.
        activation: bits, scheme and grid of the activations.
        input: what is done to normalized images before the first layer: `none`, or `int` (truncate to integers, as document 002
            does with `input.int().float()`), or `round` (the nearest integer).
    """

    name: str = "linear"
    factory: str | None = later(None)
    weight: WeightQuantSettings = field(default_factory=WeightQuantSettings)
    activation: ActivationQuantSettings = field(default_factory=ActivationQuantSettings)
    input: Literal["none", "int", "round"] = "none"

    def __post_init__(self) -> None:
        """Check what belongs together."""
        row = SCHEMES.choose(self.name, factory=self.factory, key="quant.name")
        row.check_rounding(self.weight.rounding, self.weight.level)

    @property
    def scheme(self) -> str:
        """What a spec names: the scheme, or the text of the user's function."""
        return self.name if self.factory is None else self.factory

    @property
    def row(self) -> SchemeInfo:
        """All there is to know of the scheme."""
        return SCHEMES[self.scheme]

    @cached_property
    def source(self) -> str:
        """Hash of the user's code, as it is when first asked for; empty for ours."""
        return "" if self.factory is None else source_hash(self.factory) or ""
