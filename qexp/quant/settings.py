"""Settings of the quantizers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SCHEME_NAMES = ("linear", "linear_raw", "affine", "symmetric")
MIN_BITS = {"symmetric": 2}  # a restricted symmetric grid has 2^(bits-1) - 1 codes on each side of zero: none at one bit
ROUNDING_NAMES = ("half_even", "half_up", "half_away", "floor", "ceil", "trunc")


@dataclass(frozen=True, kw_only=True)
class WeightQuantSettings:
    """The grid of a weight: granularity, rounding to codes, and how the division by the scale is carried out."""

    granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    rounding: Literal[ROUNDING_NAMES] = "half_even"
    arithmetic: Literal["reciprocal", "divide"] = "reciprocal"


@dataclass(frozen=True, kw_only=True)
class QuantSettings:
    """The quantizer.

    Args:
        name: scheme of the weights. weight: its grid.
        input: what is done to normalized images before the first layer: `none`, or `int` (truncate to integers, as document 002
            does with `input.int().float()`), or `round` (the nearest integer).
    """

    name: Literal[SCHEME_NAMES] = "linear"
    weight: WeightQuantSettings = field(default_factory=WeightQuantSettings)
    input: Literal["none", "int", "round"] = "none"
