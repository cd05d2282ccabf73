"""Each scheme's three steps, fit, encode and decode, on rows of a tensor, and the fused kernel of those that are worth one."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qexp.base.types import QParams, QuantSpec
from qexp.quant.affine import Operation, count_steps, fake_quantize_steps, scaling, step_limits
from qexp.quant.codebooks import (
    decode_binary,
    decode_codebook,
    decode_dorefa,
    encode_binary,
    encode_codebook,
    encode_dorefa,
    encode_ternary,
    fit_binary,
    fit_codebook,
    fit_ternary,
)
from qexp.quant.levels import clamp_levels, decode_levels, encode_levels, level_scale
from qexp.quant.linear import linear_clamp, linear_constants, linear_inverse, linear_map, linear_span, linear_unmap
from qexp.quant.qparams import choose_qparams, fixed_point_qparams, scale_factors
from qexp.quant.quantizer import ControlQuantizer, FusedQuantizer, Kernel, KernelParams, Params, Quantizer, Rows
from qexp.quant.scheme_table import code_range


def column(param: Tensor) -> Tensor:
    """One number for each row, broadcastable to [G, N]; a 0-d tensor as it is."""
    return param.reshape(-1, 1) if param.dim() else param


class Linear(FusedQuantizer):
    """`linear` and `linear_raw`: linear_quantize, rounding, and for `linear` linear_dequantize."""

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
        """Codes -> values; `linear_raw` leaves them."""
        return codes if spec.scheme == "linear_raw" else linear_unmap(codes, column(params["scale"]), column(params["offset"]))

    @staticmethod
    def kernel(params: Params, spec: QuantSpec, rounding: Operation | None, clipped: bool) -> tuple[Kernel, KernelParams]:
        """The steps in place; codes outside their range occur only where the range is not the tensor's own."""
        raw = spec.scheme == "linear_raw"
        # 0-d tensors: torch would wrap Python numbers anew in every call
        levels, lowest = _constant_tensors(spec.bits)

        def kernel(x: Tensor, out: Tensor, minimum: Tensor, span: Tensor, step: Tensor, offset: Tensor) -> None:
            linear_map(x, minimum, span, levels, lowest, out=out)
            if rounding is not None:
                rounding(out, out=out)
            if clipped:
                linear_clamp(out, spec.bits, out=out)
            if not raw:
                linear_unmap(out, step, offset, out=out)

        return kernel, (params["minimum"], params["span"], params["scale"], params["offset"])


@cache
def _constant_tensors(bits: int) -> tuple[Tensor, Tensor]:
    levels, lowest = linear_constants(bits)
    return torch.tensor(levels, device="cpu"), torch.tensor(lowest, device="cpu")


class Affine(FusedQuantizer):
    """The affine grids: scale and zero point from `choose_qparams`, or of a fixed-point format."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Scale and zero point."""
        if spec.scheme == "fixed_point":
            qparams = fixed_point_qparams(spec.bits, spec.fraction_bits, device=minimum.device)
        else:
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

        def kernel(x: Tensor, out: Tensor, operand: Tensor, low: Tensor | float, high: Tensor | float, scale: Tensor) -> None:
            fake_quantize_steps(x, operation, operand, rounding, low, high, scale, out=out)

        return kernel, (operand, *step_limits(qparams), qparams.scale)


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

        def kernel(x: Tensor, out: Tensor, factor: Tensor) -> None:
            torch.clamp(torch.mul(x, factor, out=out), low, high, out=out)
            if rounding is not None:
                rounding(out, out=out)
            torch.div(out, factor, out=out)

        return kernel, (params["factor"],)


class Levels(ControlQuantizer):
    """`log2`, `apot` and `quadratic`: the nearest of a fixed table of levels times max|x|."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """The largest magnitude."""
        return {"scale": level_scale(minimum, maximum)}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> signed level numbers."""
        return encode_levels(x, column(params["scale"]), spec, rounding)

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Signed level numbers -> values."""
        return decode_levels(codes, column(params["scale"]), spec)

    @staticmethod
    def control(x: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The clamp alone."""
        return clamp_levels(x, column(params["scale"]))


class Dorefa(ControlQuantizer):
    """`dorefa`: even levels of tanh(x) / max|tanh x|; at one bit the signs times mean|x|."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """The largest |tanh|."""
        if spec.bits == 1:
            return Binary.fit(rows, minimum, maximum, spec)
        peak = level_scale(minimum, maximum)
        return {"peak": torch.tanh(peak)}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> codes."""
        return encode_binary(x) if spec.bits == 1 else encode_dorefa(x, column(params["peak"]), spec.bits, rounding)

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Codes -> values from -1 to 1."""
        return decode_binary(codes, column(params["scale"])) if spec.bits == 1 else decode_dorefa(codes, spec.bits)

    @staticmethod
    def control(x: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """tanh(x) / max|tanh x|, by way of the unrounded codes."""
        return decode_dorefa(encode_dorefa(x, column(params["peak"]), spec.bits, None), spec.bits)


class Codebook(Quantizer):
    """`lut_quantile` and `lut_kmeans`: the nearest of 2^bits fitted values."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Scale, and centroids relative to it; of each part, joined by the caller."""
        scale, codebook = fit_codebook(rows[0], spec.bits, kmeans=spec.scheme == "lut_kmeans", pin_zero=spec.pin_zero)
        return {"scale": scale, "codebook": codebook}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> numbers of centroids."""
        return encode_codebook(x, params["scale"], params["codebook"])

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Numbers -> centroids."""
        return decode_codebook(codes, params["scale"], params["codebook"])


class Binary(Quantizer):
    """`binary`: mean|x| with the sign of x."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """mean|x|."""
        return {"scale": fit_binary(rows[0])}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """0 below zero, else 1."""
        return encode_binary(x)

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The sign times the scale."""
        return decode_binary(codes, column(params["scale"]))


class Ternary(Quantizer):
    """`ternary`: a mean magnitude with the sign of x, and zero below a threshold."""

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Threshold and scale."""
        threshold, scale = fit_ternary(rows[0])
        return {"threshold": threshold, "scale": scale}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """-1, 0 or 1."""
        return encode_ternary(x, column(params["threshold"]))

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The code times the scale."""
        return codes * column(params["scale"])
