"""Weights in floating-point formats of 8 bits, as the numbers and scales that an ONNX file holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.export import FILE_GRANULARITIES, float8_type
from qexp.quant.affine import expand
from qexp.quant.float_format import FloatFormat
from qexp.quant.float_quantizers import Minifloat
from qexp.quant.minifloat import round_to_format
from qexp.quant.schemes import Limits, fit


@dataclass(frozen=True, eq=False)
class Float8Weight:
    """A weight in a small floating-point format: value = number * scale.

    Args:
        numbers: of the format, float32, of the weight's shape.
        scale: float32, 0-d or [channels].
        axis: of the channels; None per tensor.
        element: the format.
    """

    numbers: Tensor
    scale: Tensor
    axis: int | None
    element: FloatFormat

    @property
    def values(self) -> Tensor:
        """float32, what the numbers stand for."""
        return self.numbers * expand(self.scale, self.axis, self.numbers)

    @property
    def bits(self) -> int:
        """Of a number."""
        return self.element.bits

    @property
    def dtype(self) -> str:
        """ONNX's name of the type."""
        dtype = float8_type(self.element)
        assert dtype is not None, self.element
        return dtype


def has_float8(spec: QuantSpec) -> bool:
    """True where ONNX has a floating-point type of 8 bits for a weight: `e4m3fn` or `e5m2`, per tensor or per channel.

    Args:
        spec: of the weight.
    """
    if spec.scheme != "minifloat" or spec.mode != "int" or spec.granularity not in FILE_GRANULARITIES:
        return False
    return float8_type(Minifloat.element(spec)) is not None


def overflow_of(spec: QuantSpec) -> str:
    """The overflow rule of a spec, `sat`, `inf` or `nan`; QuantizeLinear's `saturate` is 1 for the first alone.

    Args:
        spec: of scheme `minifloat`.
    """
    return Minifloat.overflow(spec) or Minifloat.element(spec).overflow


@torch.no_grad()
def float8_weight(name: str, values: Tensor, source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> Float8Weight:
    """The numbers of a weight that was quantized, and their scales.

    Args:
        name: for the message.
        values: float32, quantized.
        source: the float weight, from which the scales follow.
        spec: for which `has_float8` is true.
        limits: as for `quantize_`.

    Raises:
        UserError: a value is not on the grid; as `fit`.

    >>> weight = torch.tensor([-1.0, 0.0, 2.0])
    >>> float8_weight("w", weight, weight, QuantSpec(scheme="minifloat", bits=8)).numbers
    tensor([-224.,    0.,  448.])
    """
    assert has_float8(spec), spec
    axis = spec.axis if spec.granularity == "per_channel" else None
    scale = fit(source, spec, limits).params["scale"].float()
    scale = scale.reshape(()) if axis is None else scale.reshape(-1)
    element, values = Minifloat.element(spec), values.float()
    numbers = round_to_format(values / expand(scale, axis, values), element, overflow=overflow_of(spec))
    weight = Float8Weight(numbers, scale, axis, element)
    num_off = int(((weight.values != values) & ~values.isnan()).sum())
    if num_off:
        allowed, remedy = f"numbers of {element.name} times its scale", "They and the float weight do not belong together."
        raise UserError(name, f"{num_off} values off their grid", allowed=allowed, remedy=remedy)
    return weight
