"""One layer in integers, as hardware computes it: codes times codes, summed at 32 bits, brought to the next scale.

Sums are floating-point on integer values, which is exact as long as no partial sum can leave the numbers that the type counts by
ones, in whatever order they are added. That is below 2^53 in float64, where every accumulator is, and below 2^24 in float32, in
which torch's convolutions take a fourth to a thirteenth of the time. max |q_x - z_x| sum |q_w - z_w| decides between them, of the
very codes. A kernel that does more than multiply and add (Winograd's) gives fractions of these integers, and what gives any
is computed again in float64. Rejected: torch's integer convolutions, which have no kernel. The two requantizations are those of
runtimes; they differ by one code where a result lies at a tie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from qexp.base.errors import UserError, choose
from qexp.base.types import QParams
from qexp.config.export import REQUANTIZATIONS
from qexp.deploy.weight_codes import MAX_BIAS, WeightCodes, accumulator_scale
from qexp.nn.channels import Layer
from qexp.quant.affine import quantize_affine

_INT32 = 2**31 - 1
_FLOAT32 = 2**24  # integers up to it are float32, all of them
_CONVS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

Clamp = tuple[float, float | None]  # lower end, and upper end or None


@torch.no_grad()
def accumulate(layer: Layer, codes: Tensor, x: QParams, weight: WeightCodes, bias: Tensor | None = None) -> Tensor:
    """The accumulators of a layer: sum (q_x - z_x) (q_w - z_w) + b, int32, exact.

    Args:
        layer: whose strides, padding and groups are used; its weights are not. Padding is the code of zero.
        codes: integers, of its input.
        x: their grid, per tensor.
        weight: codes of its weight.
        bias: int32 [channels], `bias_codes` at `accumulator_scale(x, weight.qparams)`.

    Raises:
        UserError: a sum beyond 32 bits.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 2.2.
    """
    assert x.axis is None and getattr(layer, "padding_mode", "zeros") == "zeros"
    shape = [-1 if axis == weight.qparams.axis else 1 for axis in range(weight.codes.dim())]
    matrix = weight.codes.double() - weight.qparams.zero_point.double().reshape(shape)
    inputs = matrix.abs().sum([axis for axis in range(matrix.dim()) if axis != int(isinstance(layer, _ConvTransposeNd))])
    sums = _exact(lambda *operands: _sums(layer, *operands), _without(codes, x), matrix, float(inputs.max()))
    if bias is None:
        return _int32(sums)
    bias = along_channels(bias, sums, channel_axis(layer))
    if sums.dtype == torch.float32 and int(bias.abs().max()) <= MAX_BIAS:  # far from 2^31 together
        return sums.to(torch.int32) + bias
    return _int32(sums.double() + bias.double())


def _without(codes: Tensor, grid: QParams) -> Tensor:
    """Codes less their zero point, float32 where that holds them."""
    is_wide = max(abs(grid.quant_min), abs(grid.quant_max)) >= 2**16
    dtype = torch.float64 if is_wide else torch.float32
    return codes.to(dtype) - grid.zero_point.to(dtype)


def _exact(product: Callable[[Tensor, Tensor], Tensor], values: Tensor, others: Tensor, sum_of_others: float) -> Tensor:
    """A sum of products of integers, float32 or float64, exact.

    Args:
        product: of `values` and `others`, in their type.
        values: integers.
        others: integers, float64.
        sum_of_others: largest sum of the absolute values of `others` that are multiplied for one result.
    """
    low, high = torch.aminmax(values) if values.numel() else (values.new_zeros(()), values.new_zeros(()))
    if max(-float(low), float(high)) * sum_of_others <= _FLOAT32:
        sums = product(values.float(), others.float())
        if bool((sums == sums.round()).all()):
            return sums
    return product(values.double(), others)


def _int32(sums: Tensor) -> Tensor:
    """Sums as an accumulator of 32 bits holds them, which is refused where it does not."""
    if sums.dtype == torch.float64 and sums.numel() and float(sums.abs().max()) > _INT32:
        raise UserError(
            "accumulator", f"{float(sums.abs().max()):.0f}", allowed="at most 2^31 - 1: fewer bits, or smaller layers"
        )
    return sums.to(torch.int32)


def _sums(layer: Layer, values: Tensor, matrix: Tensor) -> Tensor:
    """What a layer without a bias makes of values and weights, in their type."""
    if isinstance(layer, nn.Linear):
        return F.linear(values, matrix)
    rank = len(layer.kernel_size) - 1
    if isinstance(layer, _ConvTransposeNd):
        sizes: Any = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return _TRANSPOSED[rank](values, matrix, None, *sizes)
    return _CONVS[rank](values, matrix, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@torch.no_grad()
def requantize(sums: Tensor, scale: Tensor, y: QParams, *, requantization: str = "float32", axis: int = 1) -> Tensor:
    """Accumulators -> codes of the next grid, int32.

    float32:     clamp(round_half_even(fl(acc) * m) + z_y), m = s_x s_w / s_y, all in float32: ONNX Runtime's kernels, bit for bit
    fixed_point: clamp((acc * M + 2^(n-1)) >> n + z_y), M 2^-n = s_x s_w / s_y with M an int32 of 31 bits: no float at run time,
        ties up

    Args:
        sums: int32 accumulators.
        scale: `accumulator_scale`, 0-d or [channels].
        y: grid of the result, per tensor.
        requantization: `float32` or `fixed_point`, as above.
        axis: of the channels.

    Source: ONNX Runtime, MlasRequantizeOutput; Jacob et al. 2018, arXiv:1712.05877, section 2.2.

    >>> requantize(torch.tensor([[-30, 21]]), torch.tensor(0.1), QParams(torch.tensor(0.5), torch.tensor(0.0), -128, 127))
    tensor([[-6,  4]], dtype=torch.int32)
    """
    assert y.axis is None
    if choose("requantization", requantization, REQUANTIZATIONS) == "float32":
        steps = torch.round(sums.float() * along_channels(scale.float() / y.scale.float(), sums, axis))
    else:
        multiplier, shift = fixed_point(scale.double() / y.scale.double())
        multiplier, shift = along_channels(multiplier, sums, axis), along_channels(shift, sums, axis)
        steps = (sums.long() * multiplier + (1 << (shift - 1))) >> shift
    return torch.clamp(steps + y.zero_point.to(steps.dtype), y.quant_min, y.quant_max).to(torch.int32)


def fixed_point(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """A positive ratio as M 2^-n: M int64 in [2^30, 2^31), n int64 from 1 to 62; ratios too small for that become 0.

    >>> fixed_point(torch.tensor(0.75, dtype=torch.float64))
    (tensor(1610612736), tensor(31))

    Raises:
        UserError: a ratio of 2^30 and more.
    """
    mantissa, exponent = torch.frexp(ratio.double())  # mantissa in [1/2, 1)
    multiplier, shift = torch.round(mantissa * 2**31).long(), 31 - exponent.long()
    over = multiplier == 2**31
    multiplier, shift = torch.where(over, 2**30, multiplier), shift - over.long()
    if bool((shift < 1).any()):
        raise UserError("requantization", "fixed_point", allowed="s_x s_w / s_y below 2^30")
    return torch.where(shift > 62, 0, multiplier), shift.clamp(max=62)


@torch.no_grad()
def integer_layer(
    layer: Layer,
    codes: Tensor,
    x: QParams,
    weight: WeightCodes,
    y: QParams | None,
    *,
    bias: Tensor | None = None,
    clamp: Clamp | None = None,
    requantization: str = "float32",
) -> Tensor:
    """A layer from codes to codes, int32, or to float32 values where nothing quantizes them (the logits).

    Args:
        layer: whose strides, padding and groups are used; its weights are not.
        codes: integers, of its input.
        x: grid of the input, per tensor.
        weight: codes of its weight.
        y: grid of the result; None for float32, acc * s_x s_w.
        bias: int32 [channels], `bias_codes` at `accumulator_scale(x, weight.qparams)`.
        clamp: what the result is clamped to: (0, None) of a ReLU, (0, 6) of a ReLU6; on codes, which is exact.
        requantization: of `requantize`.
    """
    scale = accumulator_scale(x, weight.qparams, shared_groups(layer))
    sums = accumulate(layer, codes, x, weight, bias)
    return _brought_to(y, sums, scale, channel_axis(layer), clamp, requantization)


@torch.no_grad()
def integer_product(
    first: tuple[Tensor, QParams], second: tuple[Tensor, QParams], y: QParams | None, *, requantization: str = "float32"
) -> Tensor:
    """The matrix product of two activations, sum (q_a - z_a) (q_b - z_b), as `integer_layer` gives its result.

    Args:
        first: codes [..., M, K] and their grid, per tensor.
        second: codes [..., K, N] and their grid, per tensor.
        y: grid of the result; None for float32, acc * s_a s_b.
        requantization: of `requantize`.

    Raises:
        UserError: a sum beyond 32 bits.
    """
    values, others = _without(*first), _without(*second).double()
    largest = float(others.abs().sum(-2).max()) if others.numel() else 0.0
    sums = _int32(_exact(torch.matmul, values, others, largest))
    return _brought_to(y, sums, accumulator_scale(first[1], second[1]), -1, None, requantization)


def _brought_to(y: QParams | None, sums: Tensor, scale: Tensor, axis: int, clamp: Clamp | None, requantization: str) -> Tensor:
    """Accumulators as codes of the next grid, or as float32 values where there is none."""
    if y is None:
        values = sums.float() * along_channels(scale, sums, axis)
        return values if clamp is None else values.clamp(*clamp)
    codes_out = requantize(sums, scale, y, requantization=requantization, axis=axis)
    if clamp is None:
        return codes_out
    ends = [None if end is None else int(quantize_affine(torch.tensor(end), y, arithmetic="divide")) for end in clamp]
    return codes_out.clamp(*ends)


def shared_groups(layer: nn.Module) -> int:
    """Groups of a transposed convolution, whose channels have their scales in common; 1 of others."""
    return layer.groups if isinstance(layer, _ConvTransposeNd) else 1


def channel_axis(layer: nn.Module) -> int:
    """Where a layer's result has its channels."""
    return -1 if isinstance(layer, nn.Linear) else 1


def along_channels(values: Tensor, sums: Tensor, axis: int) -> Tensor:
    """Values shaped to broadcast along a dimension of sums.

    Args:
        values: [channels], or 0-d, which stays as it is.
        sums: any shape.
        axis: the dimension of its channels.
    """
    if not values.dim():
        return values
    shape = [1] * sums.dim()
    shape[axis] = -1
    return values.reshape(shape)
