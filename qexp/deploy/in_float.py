"""Weights in few bits that runtimes compute with in float: floats of 8 bits, and codes with a scale for each group."""

from __future__ import annotations

from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.deploy.float8 import Float8Weight, float8_weight, has_float8
from qexp.deploy.grouped import GroupedWeight, grouped_weight, has_groups
from qexp.quant.schemes import Limits

InFloat = Float8Weight | GroupedWeight


def is_in_float(spec: QuantSpec) -> bool:
    """True where ONNX can hold a weight, and no runtime computes with it in integers.

    Args:
        spec: of the weight.
    """
    return has_float8(spec) or has_groups(spec)


def in_float_weight(name: str, values: Tensor, source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> InFloat:
    """What a file holds of such a weight; arguments and errors are those of `float8_weight` and `grouped_weight`."""
    if has_float8(spec):
        return float8_weight(name, values, source, spec, limits)
    return grouped_weight(name, values, source, spec, limits)
