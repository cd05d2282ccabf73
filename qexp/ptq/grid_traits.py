"""What the methods ask of a quantizer's grid."""

from __future__ import annotations

from dataclasses import replace

import torch

from qexp.base.types import QuantSpec
from qexp.quant.scheme_table import NEAREST_LEVEL, SCHEME_NAMES, UNSIGNED, code_range
from qexp.quant.schemes import check_spec

_TWO_ENDS = ("affine", "linear", "linear_raw")  # both ends of the range count, each for itself
EVEN = tuple(name for name in SCHEME_NAMES if name not in (*NEAREST_LEVEL, "dorefa"))  # whose steps all have one width


def is_unsigned(spec: QuantSpec) -> bool:
    """True where negative values become 0, so that only the upper end counts."""
    return spec.scheme in UNSIGNED or (spec.scheme == "scale_factor" and not spec.signed)


def shrinks_together(spec: QuantSpec) -> bool:
    """True for the grids that are symmetric around zero: of the range only max|x| counts."""
    return not is_unsigned(spec) and spec.scheme not in _TWO_ENDS


def num_steps(spec: QuantSpec) -> int:
    """Steps between the grid's ends."""
    low, high = code_range(spec.scheme, spec.bits, spec.signed)
    return high - low


def row_spec(spec: QuantSpec) -> QuantSpec:
    """The same grid for rows [G, N], each with its range; the control's ranges are those of the rounded copy."""
    return replace(spec, mode="int", granularity="per_channel", axis=0)


def check_clipped(spec: QuantSpec) -> None:
    """Raise UserError unless the spec has a range that may be given from outside."""
    check_spec(spec, (torch.zeros(()), torch.zeros(())))
