"""Schemes of even steps: fit, encode and decode on rows of a tensor, and the fused kernel that runs them in place."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from qexp.base.types import QParams, QuantSpec
from qexp.quant.affine import Operation, count_steps, scaling, step_limits
from qexp.quant.linear import linear_clamp, linear_constants, linear_inverse, linear_map, linear_span, linear_unmap
from qexp.quant.qparams import choose_qparams, fixed_point_qparams, scale_factors
from qexp.quant.quantizer import FusedQuantizer, Kernel, KernelParams, Params, Rows, column
from qexp.quant.scheme_table import code_range
from qexp.quant.uniform import UniformKernel, affine_kernel


class Linear(FusedQuantizer):
    """`linear`: linear_quantize, rounding and linear_dequantize."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """The range, its span, and the step and offset that invert the map."""
        step, offset = linear_inverse(minimum, maximum, spec.bits)
        return {"minimum": minimum, "span": linear_span(minimum, maximum), "scale": step, "offset": offset}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> codes."""
        codes = linear_map(x, column(params["minimum"]), column(params["span"]), *linear_constants(spec.bits))
        codes = codes if rounding is None else rounding(codes)
        return linear_clamp(codes, spec.bits)

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Codes -> values."""
        return linear_unmap(codes, column(params["scale"]), column(params["offset"]))

    @staticmethod
    def kernel(params: Params, spec: QuantSpec, rounding: Operation | None, clipped: bool) -> tuple[Kernel, KernelParams]:
        """The steps in place."""
        to_codes = _to_codes(spec, rounding, clipped)

        def steps(x: Tensor, out: Tensor, minimum: Tensor, span: Tensor, step: Tensor, offset: Tensor) -> None:
            to_codes(x, out, minimum, span)
            linear_unmap(out, step, offset, out=out)

        kernel = UniformKernel(steps, "linear", to_codes.rounding, to_codes.numbers)
        return kernel, (params["minimum"], params["span"], params["scale"], params["offset"])


class LinearRaw(Linear):
    """`linear_raw`: the codes stay."""

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The codes."""
        return codes

    @staticmethod
    def kernel(params: Params, spec: QuantSpec, rounding: Operation | None, clipped: bool) -> tuple[Kernel, KernelParams]:
        """The steps in place."""
        return _to_codes(spec, rounding, clipped), (params["minimum"], params["span"])


def _to_codes(spec: QuantSpec, rounding: Operation | None, clipped: bool) -> UniformKernel:
    """Values -> codes in place; codes outside their range occur only where the range is not the tensor's own."""
    # 0-d tensors: torch would wrap Python numbers anew in every call
    levels, lowest = _constant_tensors(spec.bits)

    def steps(x: Tensor, out: Tensor, minimum: Tensor, span: Tensor) -> None:
        linear_map(x, minimum, span, levels, lowest, out=out)
        if rounding is not None:
            rounding(out, out=out)
        if clipped:
            linear_clamp(out, spec.bits, out=out)

    count, first = linear_constants(spec.bits)
    ends = (first, first + count) if clipped else (-math.inf, math.inf)
    return UniformKernel(steps, "linear_raw", _name(spec, rounding), (count, first, *ends))


def _name(spec: QuantSpec, rounding: Operation | None) -> str | None:
    """The name of the rounding where there is one."""
    return None if rounding is None else spec.rounding


@cache
def _constant_tensors(bits: int) -> tuple[Tensor, Tensor]:
    levels, lowest = linear_constants(bits)
    return torch.tensor(levels, device="cpu"), torch.tensor(lowest, device="cpu")


class Affine(FusedQuantizer):
    """The affine grids: scale and zero point from `choose_qparams`."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Scale and zero point."""
        qparams = choose_qparams(minimum, maximum, spec.bits, scheme=spec.scheme, pow2_round=spec.pow2_round)
        return {"scale": qparams.scale, "zero_point": qparams.zero_point}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """quantize_affine, with its parts looked up."""
        steps = count_steps(x, *scaling(column(params["scale"]), spec.arithmetic), rounding)
        return torch.clamp(steps + column(params["zero_point"]), *code_range(spec.scheme, spec.bits))

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """dequantize_affine."""
        return (codes - column(params["zero_point"])) * column(params["scale"])

    @staticmethod
    def kernel(params: Params, spec: QuantSpec, rounding: Operation | None, clipped: bool) -> tuple[Kernel, KernelParams]:
        """fake_quantize_affine in place."""
        qparams = QParams(params["scale"], params["zero_point"], *code_range(spec.scheme, spec.bits))
        operation, operand = scaling(qparams.scale, spec.arithmetic)

        kernel = affine_kernel(operation, rounding, spec.rounding)
        return kernel, (operand, *step_limits(qparams), qparams.scale)


class FixedPoint(Affine):
    """`fixed_point`: the grid of a format, whatever the values."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Scale and zero point of the format."""
        qparams = fixed_point_qparams(spec.bits, spec.fraction_bits, device=minimum.device)
        return {"scale": qparams.scale, "zero_point": qparams.zero_point}


class ScaleFactor(FusedQuantizer):
    """`scale_factor`: q = R(clamp(x f, quant_min, quant_max)), x^ = q / f, in document 003's order of operations."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Codes per unit."""
        return {"factor": scale_factors(minimum, maximum, spec.bits, signed=spec.signed)}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> codes."""
        codes = (x * column(params["factor"])).clamp_(*code_range(spec.scheme, spec.bits, spec.signed))
        return codes if rounding is None else rounding(codes)

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Codes -> values."""
        return codes / column(params["factor"])

    @staticmethod
    def kernel(params: Params, spec: QuantSpec, rounding: Operation | None, clipped: bool) -> tuple[Kernel, KernelParams]:
        """The steps in place."""
        low, high = code_range(spec.scheme, spec.bits, spec.signed)

        def steps(x: Tensor, out: Tensor, factor: Tensor) -> None:
            torch.clamp(torch.mul(x, factor, out=out), low, high, out=out)
            if rounding is not None:
                rounding(out, out=out)
            torch.div(out, factor, out=out)

        kernel = UniformKernel(steps, "scale_factor", _name(spec, rounding), (low, high))
        return kernel, (params["factor"],)
