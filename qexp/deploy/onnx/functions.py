"""Elementwise functions with parameters of their own, and reductions that are no averages, as ONNX nodes."""

from __future__ import annotations

from qexp.deploy.graph_call import Constant
from qexp.deploy.onnx.node import OnnxNode


def prelu(node: OnnxNode) -> str:
    """PRelu, its slopes along the channels."""
    x, slope = node.activation(), node.argument(1, "weight")
    if not isinstance(slope, Constant):
        node.refuse("its slope depends on the images")
    shape = (-1, *[1] * (len(x.shape) - 2)) if slope.tensor.numel() > 1 else (1,)
    return node.emit("PRelu", x.name, node.operand(Constant(slope.tensor.reshape(shape), slope.path)))


def elu(node: OnnxNode) -> str:
    """Elu."""
    return node.emit("Elu", node.activation().name, alpha=float(node.argument(1, "alpha", 1.0)))


def celu(node: OnnxNode) -> str:
    """Celu."""
    return node.emit("Celu", node.activation().name, alpha=float(node.argument(1, "alpha", 1.0)))


def softplus(node: OnnxNode) -> str:
    """Softplus."""
    if node.argument(1, "beta", 1.0) != 1:
        node.refuse("its beta is not 1")
    if node.argument(2, "threshold", 20.0) != 20:  # beyond which torch gives x itself, then equal to it in float32
        node.refuse("its threshold is not 20")
    return node.emit("Softplus", node.activation().name)


def reduction(operator: str):  # type: ignore[no-untyped-def]  # a handler
    """ReduceMax and ReduceSum over dimensions that do not count the images.

    Args:
        operator: ONNX's name.
    """

    def handler(node: OnnxNode) -> str:
        x, dims = node.activation(), node.argument(1, "dim")
        given = [dims] if isinstance(dims, int) else list(dims or ())
        if not given or any(dim % len(x.shape) == 0 for dim in given):
            node.refuse("it reduces over the batch")
        axes = node.integers(*sorted(dim % len(x.shape) for dim in given))
        return node.emit(operator, x.name, axes, keepdims=int(bool(node.argument(2, "keepdim", False))))

    return handler


def adaptive_max_pool(node: OnnxNode) -> str:
    """GlobalMaxPool, or MaxPool where the output divides the image size that is exported."""
    x = node.activation()
    before, after = x.shape[2:], node.shape[2:]
    if node.argument(2, "return_indices", False):
        node.refuse("it returns indices")
    if all(size == 1 for size in after):
        return node.emit("GlobalMaxPool", x.name)
    if any(size % count for size, count in zip(before, after, strict=True)):
        node.refuse(f"it takes {list(before)} pixels to {list(after)}, in windows of unequal sizes")
    window = [size // count for size, count in zip(before, after, strict=True)]
    return node.emit("MaxPool", x.name, kernel_shape=window, strides=window)
