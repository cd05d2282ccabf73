"""Layers and norms as ONNX nodes: what has parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qexp.deploy.graph_call import Constant
from qexp.deploy.onnx.node import Dynamic, OnnxNode, Value
from qexp.deploy.onnx.writer import FLOAT, Grid
from qexp.nn.channels import scale_and_shift


def pair(value: int | Sequence[int], rank: int) -> list[int]:
    """A size for each spatial dimension.

    Args:
        value: one number for all dimensions, or one for each.
        rank: number of dimensions.
    """
    return [int(value)] * rank if isinstance(value, int) else [int(size) for size in value]


def conv(node: OnnxNode) -> str:
    """Conv: weight and bias as codes where they are known."""
    x, rank = node.activation(), len(node.shape) - 2
    weight, bias = _parameters(node)
    mode = getattr(node.module, "padding_mode", "zeros")
    if mode != "zeros":
        node.refuse(f"its padding is {mode}")
    dilations = pair(node.argument(5, "dilation", 1), rank)
    pads = pads_of(node.argument(4, "padding", 0), dilations, weight.tensor.shape[2:])
    attributes = {
        "strides": pair(node.argument(3, "stride", 1), rank),
        "pads": [own + before for own, before in zip(pads, x.pads or (0,) * 2 * rank, strict=True)],
        "dilations": dilations,
        "group": int(node.argument(6, "groups", 1)),
        "kernel_shape": list(weight.tensor.shape[2:]),
    }
    name, grid = node.weight(weight)
    inputs = [_layer_input(node, x, grid), name]
    offset = None if bias is None else node.bias(bias, x.grid, grid)
    result = node.emit("Conv", *inputs, *([offset] if offset else []), **attributes)
    return result if bias is None or offset else node.emit("Add", result, _added_bias(node, bias, rank))


def pads_of(padding: str | int | Sequence[int], dilations: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Zeros before each dimension, then behind each; `same` puts one more behind where a kernel has an even size."""
    if not isinstance(padding, str):
        return pair(padding, len(kernel)) * 2
    totals = [dilation * (size - 1) * (padding == "same") for dilation, size in zip(dilations, kernel, strict=True)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def conv_transpose(node: OnnxNode) -> str:
    """ConvTranspose, of which runtimes have no integer kernel: it reads the values of codes."""
    x, rank, layer = node.activation(), len(node.shape) - 2, node.module
    assert isinstance(layer, nn.modules.conv._ConvTransposeNd), layer
    weight, bias = _parameters(node)
    attributes = {
        "strides": pair(layer.stride, rank),
        "pads": pair(node.argument(4, "padding", 0), rank) * 2,
        "output_padding": pair(layer.output_padding, rank),
        "dilations": pair(layer.dilation, rank),
        "group": layer.groups,
        "kernel_shape": list(weight.tensor.shape[2:]),
    }
    name, grid = node.weight(weight)
    offset = None if bias is None else node.bias(bias, x.grid, grid, groups=layer.groups)
    inputs = [_layer_input(node, x, grid), name, *([offset] if offset else [])]
    result = node.emit("ConvTranspose", *inputs, **attributes)
    return result if bias is None or offset else node.emit("Add", result, _added_bias(node, bias, rank))


def linear(node: OnnxNode) -> str:
    """Gemm of a matrix, MatMul of more dimensions; of codes with each batch's range, MatMulInteger."""
    x, (weight, bias) = node.activation(), _parameters(node)
    matrix = node.matrix(weight) if x.dynamic is not None else None
    if x.dynamic is not None and matrix is not None:
        result = _integer_product(node, x.dynamic, *matrix)
        return result if bias is None else node.emit("Add", result, _float_bias(node, bias))
    if len(x.shape) == 2:
        name, grid = node.weight(weight)
        offset = None if bias is None else node.bias(bias, x.grid, grid)
        result = node.emit("Gemm", _layer_input(node, x, grid), name, *([offset] if offset else []), transB=1)
        return result if bias is None or offset else node.emit("Add", result, _added_bias(node, bias, 0))
    result = node.emit("MatMul", x.name, node.weight(weight, transpose=True)[0])
    return result if bias is None else node.emit("Add", result, _added_bias(node, bias, 0))


def product(node: OnnxNode) -> str:
    """MatMul of activations, or of an activation and a matrix; of two with each batch's range MatMulInteger."""
    first, second = node.argument(0, "input"), node.argument(1, "other" if node.operator == "matmul" else "mat2")
    if not isinstance(first, Value) or not isinstance(second, Value):
        matrix = isinstance(first, Value) and isinstance(second, Constant) and second.tensor.dim() == 2
        return node.emit("MatMul", *(_matrix_product(node, first, second) if matrix else map(node.operand, (first, second))))
    if first.dynamic is None or second.dynamic is None:
        return node.emit("MatMul", first.name, second.name)
    codes = [first.dynamic.codes, second.dynamic.codes, first.dynamic.zero_point, second.dynamic.zero_point]
    scale = node.emit("Mul", first.dynamic.scale, second.dynamic.scale)
    return node.emit("Mul", node.emit("Cast", node.emit("MatMulInteger", *codes), to=FLOAT), scale)


def _matrix_product(node: OnnxNode, x: Value, matrix: Constant) -> tuple[str, str]:
    """The operands of x times a matrix."""
    name, grid = node.weight(matrix)
    return _layer_input(node, x, grid), name


def _layer_input(node: OnnxNode, x: Value, weight: Grid | None) -> str:
    """What a layer reads: x, with nothing between its DequantizeLinear and the layer only where the weight has codes too.

    Where a float weight meets DequantizeLinear, ONNX Runtime makes codes of it by ranges of its own (its optimizer
    `WeightBiasQuantization`, on by default). The maximum of x and the lower end of its grid, which is x, keeps it from that.
    A Clip to both ends would too, but OpenVINO computes that in steps of its own.
    """
    if weight is not None or x.grid is None:
        return x.name
    qparams = x.grid.qparams
    low = (qparams.quant_min - qparams.zero_point) * qparams.scale
    return node.emit("Max", x.name, node.number(float(low.min())))


def _integer_product(node: OnnxNode, x: Dynamic, codes: str, grid: Grid) -> str:
    """MatMulInteger, and its sums times s_x s_w: what ONNX Runtime makes one kernel of."""
    zero_point = [grid.zero_point] if bool(grid.qparams.zero_point.any()) else []
    sums = node.emit("MatMulInteger", x.codes, codes, x.zero_point, *zero_point)
    scale = node.emit("Mul", x.scale, grid.scale)
    return node.emit("Mul", node.emit("Cast", sums, to=FLOAT), scale)


def _float_bias(node: OnnxNode, bias: Constant) -> str:
    """A bias as float32: each batch decides the step of the accumulators."""
    node.context.stored[bias.path or f"{node.name}.bias"] = "FLOAT"
    return node.operand(bias)


def _parameters(node: OnnxNode) -> tuple[Constant, Constant | None]:
    """Weight and bias of a layer."""
    weight, bias = node.argument(1, "weight"), node.argument(2, "bias")
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        node.refuse("its weight depends on the images")
    return weight, bias


def _added_bias(node: OnnxNode, bias: Constant, rank: int) -> str:
    """A bias as float32, shaped to be added to a layer's result.

    Args:
        node: of the layer.
        bias: of the layer.
        rank: dimensions of the result behind its channels.
    """
    return node.operand(Constant(bias.tensor.reshape(-1, *[1] * rank), bias.path))


def batch_norm(node: OnnxNode) -> str:
    """BatchNormalization with the running statistics."""
    norm = node.module
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
        node.refuse("it normalizes with each batch's statistics")
    gamma, beta = scale_and_shift(norm)
    values = {
        "weight": gamma,
        "bias": beta,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    names = [node.operand(Constant(value.detach(), f"{node.path}.{name}")) for name, value in values.items()]
    return node.emit("BatchNormalization", node.activation().name, *names, epsilon=float(norm.eps))


def layer_norm(node: OnnxNode) -> str:
    """LayerNormalization over the last dimensions."""
    shape, weight = node.argument(1, "normalized_shape"), node.argument(2, "weight")
    if not isinstance(weight, Constant):
        node.refuse("it has no scale of its own")
    constants = [weight, node.argument(3, "bias")]
    values = [node.operand(constant) for constant in constants if constant is not None]
    axis, epsilon = -len(shape), float(node.argument(4, "eps", 1e-5))
    return node.emit("LayerNormalization", node.activation().name, *values, axis=axis, epsilon=epsilon)
