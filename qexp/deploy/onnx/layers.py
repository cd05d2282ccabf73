"""Layers and norms as ONNX nodes: what has parameters."""

from __future__ import annotations

from typing import Any

import torch

from qexp.deploy.onnx.node import Call, Constant, Dynamic, Value
from qexp.deploy.onnx.writer import FLOAT, Grid


def pair(value: Any, rank: int) -> list[int]:
    """One number for all spatial dimensions, or one for each."""
    return [int(value)] * rank if isinstance(value, int) else [int(each) for each in value]


def conv(call: Call) -> str:
    """Conv: weight and bias as codes where they are known."""
    x, rank = call.activation(), len(call.shape) - 2
    weight, bias = _parameters(call)
    padding = call.argument(4, "padding", 0)
    if isinstance(padding, str) or getattr(call.module, "padding_mode", "zeros") != "zeros":
        call.refuse(f"its padding is {padding if isinstance(padding, str) else call.module.padding_mode}")
    attributes = {
        "strides": pair(call.argument(3, "stride", 1), rank),
        "pads": pair(padding, rank) * 2,
        "dilations": pair(call.argument(5, "dilation", 1), rank),
        "group": int(call.argument(6, "groups", 1)),
        "kernel_shape": list(weight.tensor.shape[2:]),
    }
    name, grid = call.weight(weight)
    inputs = [_beside(call, x, grid), name]
    offset = None if bias is None else call.bias(bias, x.grid, grid)
    found = call.emit("Conv", *inputs, *([offset] if offset else []), **attributes)
    return found if bias is None or offset else call.emit("Add", found, _behind(call, bias, rank))


def linear(call: Call) -> str:
    """Gemm of a matrix, MatMul of more dimensions; of codes with each batch's range, MatMulInteger."""
    x, (weight, bias) = call.activation(), _parameters(call)
    matrix = call.matrix(weight) if x.dynamic is not None else None
    if matrix is not None:
        found = _integer_product(call, x.dynamic, *matrix)
        return found if bias is None else call.emit("Add", found, _float_bias(call, bias))
    if len(x.shape) == 2:
        name, grid = call.weight(weight)
        offset = None if bias is None else call.bias(bias, x.grid, grid)
        found = call.emit("Gemm", _beside(call, x, grid), name, *([offset] if offset else []), transB=1)
        return found if bias is None or offset else call.emit("Add", found, _behind(call, bias, 0))
    found = call.emit("MatMul", x.name, call.weight(weight, transpose=True)[0])
    return found if bias is None else call.emit("Add", found, _behind(call, bias, 0))


def _beside(call: Call, x: Value, weight: Grid | None) -> str:
    """What a layer reads: x, with nothing between its DequantizeLinear and the layer only where the weight has codes too.

    Where a float weight meets DequantizeLinear, ONNX Runtime makes codes of it by ranges of its own (its optimizer
    `WeightBiasQuantization`, on by default). The maximum of x and the lower end of its grid, which is x, keeps it from that.
    A Clip to both ends would too, but OpenVINO computes that in steps of its own.
    """
    if weight is not None or x.grid is None:
        return x.name
    qparams = x.grid.qparams
    low = (qparams.quant_min - qparams.zero_point) * qparams.scale
    return call.emit("Max", x.name, call.number(float(low.min())))


def _integer_product(call: Call, x: Dynamic, codes: str, grid: Grid) -> str:
    """MatMulInteger, and its sums times s_x s_w: what ONNX Runtime makes one kernel of."""
    zero_point = [grid.zero_point] if bool(grid.qparams.zero_point.any()) else []
    sums = call.emit("MatMulInteger", x.codes, codes, x.zero_point, *zero_point)
    scale = call.emit("Mul", x.scale, grid.scale)
    return call.emit("Mul", call.emit("Cast", sums, to=FLOAT), scale)


def _float_bias(call: Call, bias: Constant) -> str:
    """A bias as float32: the step of the accumulators is not known before the images are."""
    call.shelf.stored[bias.path or f"{call.name}.bias"] = "FLOAT"
    return call.operand(bias)


def _parameters(call: Call) -> tuple[Constant, Constant | None]:
    """Weight and bias of a layer."""
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        call.refuse("its weight depends on the images")
    return weight, bias


def _behind(call: Call, bias: Constant, rank: int) -> str:
    """A bias as float32 that is added to a result with so many dimensions behind its channels."""
    return call.operand(Constant(bias.tensor.reshape(-1, *[1] * rank), bias.path))


def batch_norm(call: Call) -> str:
    """BatchNormalization with the running statistics."""
    norm = call.module
    if norm is None or norm.running_mean is None:
        call.refuse("it normalizes with each batch's statistics")
    one = torch.ones_like(norm.running_var)
    values = {
        "weight": one if norm.weight is None else norm.weight,
        "bias": torch.zeros_like(one) if norm.bias is None else norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    names = [call.operand(Constant(value.detach(), f"{call.path}.{name}")) for name, value in values.items()]
    return call.emit("BatchNormalization", call.activation().name, *names, epsilon=float(norm.eps))


def layer_norm(call: Call) -> str:
    """LayerNormalization over the last dimensions."""
    shape, weight = call.argument(1, "normalized_shape"), call.argument(2, "weight")
    if not isinstance(weight, Constant):
        call.refuse("it has no scale of its own")
    given = [weight, call.argument(3, "bias")]
    values = [call.operand(each) for each in given if each is not None]
    axis, epsilon = -len(shape), float(call.argument(4, "eps", 1e-5))
    return call.emit("LayerNormalization", call.activation().name, *values, axis=axis, epsilon=epsilon)
