"""Elementwise arithmetic and functions as TFLite operators.

Sums and products of codes are integers' where their result goes to codes. Functions of one operand (sigmoid, Hardswish, GELU) are
computed in float, as the simulation does: TFLite's kernels of codes take tables or grids of their own for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qexp.deploy.graph_call import Constant
from qexp.deploy.onnx.operators import clip_limits
from qexp.deploy.tflite.node import TfliteNode, Value
from qexp.deploy.tflite.writer import CodeGrid

Handler = Callable[[TfliteNode], "Value | tuple[Value, ...]"]


def binary(kind: str, *, integer: bool = True) -> Handler:
    """ADD, SUB, MUL or DIV of activations, constants and numbers.

    Args:
        kind: TFLite's name.
        integer: there is a kernel of codes.
    """

    def handler(node: TfliteNode) -> Value:
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            node.refuse(f"it takes {', '.join(node.kwargs)}")
        operands: list[Any] = [node.argument(0, "input"), node.argument(1, "other")]
        values = [operand for operand in operands if isinstance(operand, Value)]
        last = any(value.last for value in values) and all(len(value.shape) == 4 for value in values)
        layout = node.context.channels_last if last else node.context.plain
        options: dict[str, Any] = {"potScaleInt16": False} if kind in ("ADD", "SUB") else {}
        y = _codes_of(node, values) if integer and len(values) == 2 else None
        if y is not None:
            numbers, fused = [layout(value).tensor for value in values], node.target.fused if node.target else 0
            return node.finished(node.emit(kind, *numbers, grid=y, last=last, fusedActivationFunction=fused or 0, **options))
        numbers = [
            layout(node.context.floats(one)).tensor if isinstance(one, Value) else node.constant(one, last=last)
            for one in operands
        ]
        return node.emit(kind, *numbers, last=last, **options)

    return handler


def _codes_of(node: TfliteNode, values: list[Value]) -> CodeGrid | None:
    """The grid of a result that integers give: operands and result are codes of one type."""
    if node.target is None or {value.grid and value.grid.dtype for value in values} != {node.target.grid.dtype}:
        return None
    return node.target.grid


def unary(kind: str, **options: Any) -> Handler:
    """A function of floats.

    Args:
        kind: TFLite's name.
        **options: of the operator.
    """

    def handler(node: TfliteNode) -> Value:
        x = node.context.floats(node.activation())
        return node.each_alone(kind, x, **options)

    return handler


def relu(node: TfliteNode) -> Value:
    """RELU of floats, a maximum of codes; nothing behind an operator that did it."""
    return _clamp(node, 0.0, None)


def clip(node: TfliteNode) -> Value:
    """ReLU6 and Hardtanh: RELU6, or a maximum and a minimum."""
    return _clamp(node, *clip_limits(node.module, node.operator, node.args, node.kwargs))


def _clamp(node: TfliteNode, low: float, high: float | None) -> Value:
    x = node.activation()
    if x.final:
        return x
    if x.grid is None and low == 0 and high in (None, 6.0):
        return node.each_alone("RELU" if high is None else "RELU6", x)
    return node.context.clamped(x, low, high)


def silu(node: TfliteNode) -> Value:
    """SiLU: x * sigmoid(x)."""
    x = node.context.floats(node.activation())
    sigmoid = node.context.emit(f"{node.name}.sigmoid", "LOGISTIC", [x.tensor], x.shape, last=x.last)
    return node.each_alone("MUL", x, sigmoid.tensor)


def hardsigmoid(node: TfliteNode) -> Value:
    """Hardsigmoid: relu6(x + 3) / 6."""
    x = node.context.floats(node.activation())
    options: dict[str, Any] = {"fusedActivationFunction": 3, "potScaleInt16": False}
    moved = node.context.emit(f"{node.name}.moved", "ADD", [x.tensor, node.constant(3.0)], x.shape, last=x.last, **options)
    return node.each_alone("MUL", replace(moved, pixels=x.pixels), node.constant(1 / 6))


def gelu(node: TfliteNode) -> Value:
    """GELU, exact or with tanh."""
    x = node.context.floats(node.activation())
    return node.each_alone("GELU", x, approximate=node.argument(1, "approximate", "none") == "tanh")


def leaky_relu(node: TfliteNode) -> Value:
    """LEAKY_RELU."""
    x = node.context.floats(node.activation())
    return node.each_alone("LEAKY_RELU", x, alpha=float(node.argument(1, "negative_slope", 0.01)))


def elu(node: TfliteNode) -> Value:
    """ELU."""
    if node.argument(1, "alpha", 1.0) != 1:
        node.refuse("its alpha is not 1")
    x = node.context.floats(node.activation())
    return node.each_alone("ELU", x)


def prelu(node: TfliteNode) -> Value:
    """PRELU, its slopes along the channels."""
    x, slope = node.context.floats(node.activation()), node.argument(1, "weight")
    if not isinstance(slope, Constant):
        node.refuse("its slope depends on the images")
    if x.shape[1:2] != slope.tensor.shape and slope.tensor.numel() > 1:
        node.refuse("its slopes are not along the channels")
    x = node.context.channels_last(x) if len(x.shape) == 4 else node.context.plain(x)
    slopes = slope.tensor.reshape(-1).expand(x.shape[1]).contiguous()
    shape = slopes.reshape(*[1] * (2 if x.last else 0), -1, *[1] * (0 if x.last else len(x.shape) - 2))
    number = node.context.writer.constant(slope.path or f"{node.name}.slopes", shape.float())
    return node.emit("PRELU", x.tensor, number, last=x.last)


def softmax(node: TfliteNode) -> Value:
    """SOFTMAX over the last dimension."""
    x, dim = node.context.plain(node.context.floats(node.activation())), node.argument(1, "dim")
    if dim is None or int(dim) % len(x.shape) != len(x.shape) - 1:
        node.refuse("it is not over the last dimension")
    return node.emit("SOFTMAX", x.tensor, beta=1.0)


def layer_norm(node: TfliteNode) -> Value:
    """A layer norm over the last dimensions, (x - mean) / sqrt(variance + eps) * weight + bias, taken apart: TFLite has none."""
    x, weight = node.context.plain(node.context.floats(node.activation())), node.argument(2, "weight")
    bias = node.argument(3, "bias")
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        node.refuse("it has no scale of its own")
    count = len(node.argument(1, "normalized_shape"))
    axes = node.context.integers(*range(len(x.shape) - count, len(x.shape)))
    narrow = (*x.shape[:-count], *[1] * count)

    def step(name: str, kind: str, *inputs: int, shape: tuple[int, ...] = x.shape, **options: Any) -> int:
        return node.context.emit(f"{node.name}.{name}", kind, inputs, shape, **options).tensor

    centered = step("centered", "SUB", x.tensor, step("mean", "MEAN", x.tensor, axes, shape=narrow, keepDims=True))
    square = step("square", "MUL", centered, centered)
    variance = step("variance", "MEAN", square, axes, shape=narrow, keepDims=True)
    epsilon = node.constant(float(node.argument(4, "eps", 1e-5)))
    inverse = step("inverse", "RSQRT", step("above", "ADD", variance, epsilon, shape=narrow), shape=narrow)
    scaled = step("normalized", "MUL", centered, inverse)
    if bias is None:
        return node.emit("MUL", scaled, node.constant(weight))
    return node.emit("ADD", step("scaled", "MUL", scaled, node.constant(weight)), node.constant(bias))
