"""Schemes that pick levels, of a table or fitted to the tensor: fit, encode and decode on rows of a tensor; and dorefa."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.base.errors import choose
from qexp.base.types import QuantSpec
from qexp.quant.affine import Operation
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
from qexp.quant.levels import (
    LEVELS,
    Companded,
    UnitLevels,
    apot_levels,
    clamp_levels,
    decode_levels,
    encode_companded,
    encode_levels,
    level_scale,
    log2_levels,
    log2_steps,
    quadratic_levels,
    root_steps,
)
from qexp.quant.quantizer import ControlQuantizer, Params, Quantizer, Rows, column


class Levels(ControlQuantizer):
    """The nearest of a fixed table of levels times max|x|; a scheme of that kind is a subclass that names its table.

    Attributes:
        unit_levels: bits -> the levels from 0 to 1, float32 [2^(bits-1)], increasing.
        companded: (u, steps) -> where u = |x| / max|x| lies among levels made even, 0 to steps; None where they cannot be.
    """

    unit_levels: ClassVar[UnitLevels]
    companded: ClassVar[Companded | None] = None

    @staticmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """The largest magnitude."""
        return {"scale": level_scale(minimum, maximum)}

    @classmethod
    def encode(cls, x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> signed level numbers."""
        choose("quant.weight.level", spec.level, LEVELS)
        if spec.level == "nearest" or cls.companded is None:
            return encode_levels(x, column(params["scale"]), cls.unit_levels, spec.bits)
        assert rounding is not None
        return encode_companded(x, column(params["scale"]), cls.companded, spec.bits, rounding)

    @classmethod
    def decode(cls, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Signed level numbers -> values."""
        return decode_levels(codes, column(params["scale"]), cls.unit_levels, spec.bits)

    @staticmethod
    def control(x: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The clamp alone."""
        return clamp_levels(x, column(params["scale"]))


class Log2(Levels):
    """`log2`: powers of two."""

    unit_levels, companded = log2_levels, log2_steps


class Apot(Levels):
    """`apot`: sums of powers of two."""

    unit_levels = apot_levels


class Quadratic(Levels):
    """`quadratic`: squares of even steps."""

    unit_levels, companded = quadratic_levels, root_steps


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
    """The nearest of 2^bits fitted values.

    Attributes:
        kmeans: their means, or else quantiles.
    """

    kmeans: ClassVar[bool]

    @classmethod
    def fit(cls, rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Scale, and centroids relative to it; of each part, joined by the caller."""
        scale, codebook = fit_codebook(rows[0], spec.bits, kmeans=cls.kmeans, pin_zero=spec.pin_zero)
        return {"scale": scale, "codebook": codebook}

    @staticmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> numbers of centroids."""
        return encode_codebook(x, params["scale"], params["codebook"])

    @staticmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Numbers -> centroids."""
        return decode_codebook(codes, params["scale"], params["codebook"])


class Quantiles(Codebook):
    """`lut_quantile`."""

    kmeans = False


class KMeans(Codebook):
    """`lut_kmeans`."""

    kmeans = True


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
