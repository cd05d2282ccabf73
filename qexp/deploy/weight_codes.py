"""Weights and biases as the integer codes and scales that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QParams, QuantSpec
from qexp.config.export import FILE_GRANULARITIES
from qexp.quant.affine import dequantize_affine, quantize_affine
from qexp.quant.encoding import encode
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import Limits

MAX_BIAS = 2**30  # leaves the other half of an int32 accumulator to 32 000 products of 8-bit codes


@dataclass(frozen=True, eq=False)
class WeightCodes:
    """A weight on a uniform grid: value = (code - zero_point) * scale.

    Args:
        codes: int32, of the weight's shape.
        qparams: its grid, per tensor or per channel.
    """

    codes: Tensor
    qparams: QParams

    @property
    def values(self) -> Tensor:
        """float32, what the codes stand for."""
        return dequantize_affine(self.codes, self.qparams)


def has_codes(spec: QuantSpec) -> bool:
    """True where ONNX can hold a weight's codes: a uniform grid that holds zero, per tensor or per channel."""
    return spec.mode == "int" and spec.granularity in FILE_GRANULARITIES and SCHEMES[spec.scheme].onnx


@torch.no_grad()
def weight_codes(source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> WeightCodes:
    """The codes that `quantize_` rounds a float weight to, and their grid.

    Args:
        source: float weight, before it is quantized.
        spec: for which `has_codes` is true.
        limits: as for `quantize_`.

    Raises:
        UserError: as `encode`.

    >>> weight_codes(torch.tensor([-1.0, 0.0, 2.0]), QuantSpec(scheme="symmetric_restricted", bits=8)).codes
    tensor([-64,   0, 127], dtype=torch.int32)
    """
    assert has_codes(spec), spec
    encoded = encode(source, spec, limits)
    axis = spec.axis if spec.granularity == "per_channel" else None
    scale = encoded.params["scale"].float()
    scale = scale.reshape(()) if axis is None else scale.reshape(-1)
    zero_point = encoded.params.get("zero_point", torch.zeros_like(scale)).float().reshape(scale.shape)
    return WeightCodes(encoded.codes, QParams(scale, zero_point, *encoded.code_range, axis))


@torch.no_grad()
def codes_of(name: str, values: Tensor, qparams: QParams) -> WeightCodes:
    """The codes of a weight that lies on its grid already, as of a quantization-aware training or after AdaRound.

    Args:
        name: for the message.
        values: float32.
        qparams: the grid that they lie on.

    Raises:
        UserError: a value is not on the grid.
    """
    coded = WeightCodes(quantize_affine(values, qparams).to(torch.int32), qparams)
    num_off = int((coded.values != values.float()).sum())
    if num_off:
        remedy = "Its state dict and its quantization parameters do not belong together."
        raise UserError(name, f"{num_off} values off their grid", allowed="the values of integer codes", remedy=remedy)
    return coded


def accumulator_scale(x: QParams, weight: QParams, groups: int = 1) -> Tensor:
    """The step of a layer's int32 accumulator, s_x * s_w in float32 on the CPU; 0-d, or [channels] of the output.

    Args:
        x: of the layer's input, per tensor.
        weight: of its weight.
        groups: of a transposed convolution, whose weight has [in, out / groups, ...] and one scale for a channel of each group.
    """
    assert x.axis is None, "an accumulator has one scale for all it reads"
    scale = x.scale.float().cpu() * weight.scale.float().cpu()
    return scale.repeat(groups) if scale.dim() else scale


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor | None:
    """A bias in steps of the accumulator, int32: round_half_even(b / (s_x s_w)), computed in float64.

    None where one is beyond 2^30, half of what the accumulator holds, as at the tiny scale of a channel almost without weights.

    Args:
        bias: [channels] float.
        scale: `accumulator_scale`, 0-d or [channels].

    >>> bias_codes(torch.tensor([0.26, -1.0]), torch.tensor(0.1))
    tensor([  3, -10], dtype=torch.int32)
    """
    codes = torch.round(bias.detach().double().cpu() / scale.double())
    return codes.to(torch.int32) if bool((codes.abs() <= MAX_BIAS).all()) else None
