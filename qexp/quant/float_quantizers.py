"""Schemes whose elements are small floats: fit, encode, decode and the kernel, over a scale for each row."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.quant.affine import Operation
from qexp.quant.float_format import FloatFormat, format_at
from qexp.quant.levels import level_scale
from qexp.quant.minifloat import from_codes, round_to_format, to_codes
from qexp.quant.qparams import MIN_SCALE
from qexp.quant.quantizer import FusedQuantizer, Kernel, KernelParams, Params, Rows, column


class FloatQuantizer(FusedQuantizer):
    """x^ = s round_to_format(x / s): the steps of all such schemes, which differ in their element and in how s is taken.

    A magnitude beyond the largest number becomes that number, whatever the format's overflow: a scale says that it is the end of
    the grid. Rows of scale 0 become 0. x is divided by s, not multiplied by 1/s.
    """

    @staticmethod
    @abstractmethod
    def element(spec: QuantSpec) -> FloatFormat:
        """The format of an element."""
        ...

    @staticmethod
    def overflow(spec: QuantSpec) -> str | None:
        """The overflow rule; None for the format's own."""
        return "sat"

    @classmethod
    def encode(cls, x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> signed numbers of magnitudes."""
        assert rounding is not None, "the control has no codes"
        element = cls.element(spec)
        scaled = x / column(_divisor(params["scale"]))
        return to_codes(round_to_format(scaled, element, rounding, overflow=cls.overflow(spec), out=scaled), element)

    @classmethod
    def decode(cls, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Signed numbers of magnitudes -> values."""
        return from_codes(codes, cls.element(spec)) * column(params["scale"])

    @classmethod
    def kernel(cls, params: Params, spec: QuantSpec, rounding: Operation | None, clipped: bool) -> tuple[Kernel, KernelParams]:
        """The steps in place; without rounding the clamp alone."""
        element, overflow = cls.element(spec), cls.overflow(spec)

        def kernel(x: Tensor, out: Tensor, divisor: Tensor, scale: Tensor) -> None:
            torch.div(x, divisor, out=out)
            if rounding is not None:
                round_to_format(out, element, rounding, overflow=overflow, out=out)
            elif (overflow or element.overflow) == "sat":
                out.clamp_(-element.max_value, element.max_value)
            out.mul_(scale)

        return kernel, (_divisor(params["scale"]), params["scale"])


class Minifloat(FloatQuantizer):
    """`minifloat`: the scale brings max|x| to the format's largest number, or is 1 and the format's overflow rule holds."""

    @staticmethod
    def element(spec: QuantSpec) -> FloatFormat:
        """The format that the spec names, or that of its width."""
        return format_at(spec.format, spec.bits)

    @staticmethod
    def overflow(spec: QuantSpec) -> str | None:
        """As the format says where nothing is scaled to fit."""
        return "sat" if spec.scaled else None

    @classmethod
    def fit(cls, rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Scales: s = max|x| / the format's largest number; 1 where all is zero."""
        largest = level_scale(minimum, maximum)
        if not spec.scaled:
            return {"scale": torch.ones_like(largest)}
        zero = (minimum == 0) & (maximum == 0)
        scale = (largest.double() / cls.element(spec).max_value).float().clamp(min=MIN_SCALE)
        return {"scale": scale.masked_fill(zero, 1.0)}


def _divisor(scale: Tensor) -> Tensor:
    """What x is divided by: infinity where the scale is 0, so that no 0 / 0 arises."""
    return scale.masked_fill(scale == 0, torch.inf)
