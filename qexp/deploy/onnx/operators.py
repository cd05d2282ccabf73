"""How each operator of a network is written to ONNX: module type, function or method -> its handler.

A handler reads its `OnnxNode` and gives the name of its result, or a `Value` to pass on as it is. `KEEPS_VALUES` are the handlers
whose result consists of values of their operands: what was on a grid is on it still, and the file states it, so that a runtime
goes on with the codes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from qexp.deploy.onnx import functions, layers, resize, shapes
from qexp.deploy.onnx.node import OnnxNode, Value
from qexp.nn.channels import TRANSPOSED
from qexp.nn.operators import function_name, operator_of

Handler = Callable[[OnnxNode], "str | Value | tuple[str, ...]"]


def clip(node: OnnxNode) -> str:
    """ReLU6 and Hardtanh."""
    low, high = clip_limits(node.module, node.operator, node.args, node.kwargs)
    return node.emit("Clip", node.activation().name, node.number(low), node.number(high))


def clip_limits(
    module: nn.Module | None, name: str, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[float, float]:
    """What ReLU6 and Hardtanh clamp to.

    Args:
        module: that is called; None for a function.
        name: of the function.
        args: of the function.
        kwargs: of the function.
    """
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    if name == "relu6":
        return 0.0, 6.0
    given = dict(zip(("input", "min_val", "max_val"), args, strict=False)) | dict(kwargs or {})
    return float(given.get("min_val", -1.0)), float(given.get("max_val", 1.0))


def unary(name: str, **fixed: Any) -> Handler:
    """An elementwise function with fixed attributes.

    Args:
        name: ONNX's, of the operator.
        **fixed: its attributes.
    """

    def handler(node: OnnxNode) -> str:
        return node.emit(name, node.activation().name, **fixed)

    return handler


def silu(node: OnnxNode) -> str:
    """SiLU: x * sigmoid(x)."""
    x = node.activation().name
    return node.emit("Mul", x, node.emit("Sigmoid", x))


def gelu(node: OnnxNode) -> str:
    """Gelu, exact or with tanh."""
    return node.emit("Gelu", node.activation().name, approximate=str(node.argument(1, "approximate", "none")))


def leaky_relu(node: OnnxNode) -> str:
    """LeakyRelu."""
    return node.emit("LeakyRelu", node.activation().name, alpha=float(node.argument(1, "negative_slope", 0.01)))


def softmax(node: OnnxNode) -> str:
    """Softmax."""
    dim = node.argument(1, "dim")
    if dim is None:
        node.refuse("it does not say over which dimension")
    return node.emit("Softmax", node.activation().name, axis=int(dim))


def binary(name: str) -> Handler:
    """Add, Sub, Mul or Div of activations, constants and numbers."""

    def handler(node: OnnxNode) -> str:
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
            node.refuse(f"it takes {', '.join(node.kwargs)}")
        return node.emit(name, node.operand(node.argument(0, "input")), node.operand(node.argument(1, "other")))

    return handler


amax, total = functions.reduction("ReduceMax"), functions.reduction("ReduceSum")
relu, sigmoid, tanh, hardswish = unary("Relu"), unary("Sigmoid"), unary("Tanh"), unary("HardSwish")
selu, mish, exp, absolute = unary("Selu"), unary("Mish"), unary("Exp"), unary("Abs")
hardsigmoid = unary("HardSigmoid", alpha=1 / 6, beta=0.5)
add, subtract, multiply, divide = binary("Add"), binary("Sub"), binary("Mul"), binary("Div")

KEEPS_VALUES = (
    relu,
    shapes.max_pool,
    shapes.reshape,
    shapes.permute,
    shapes.transpose,
    shapes.pad,
    shapes.getitem,
    shapes.concat,
    shapes.split,
    resize.channel_shuffle,
    resize.pixel_shuffle,
    resize.pixel_unshuffle,
    resize.nearest,
    functions.adaptive_max_pool,
    amax,
    shapes.unbind,
    shapes.index_select,
)
_MODULES: tuple[tuple[tuple[type, ...], Handler], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), layers.conv),
    (TRANSPOSED, layers.conv_transpose),
    ((nn.Linear,), layers.linear),
    ((nn.modules.batchnorm._BatchNorm,), layers.batch_norm),
    ((nn.LayerNorm,), layers.layer_norm),
    ((nn.ReLU,), relu),
    ((nn.Hardtanh,), clip),
    ((nn.Sigmoid,), sigmoid),
    ((nn.Hardsigmoid,), hardsigmoid),
    ((nn.Hardswish,), hardswish),
    ((nn.SiLU,), silu),
    ((nn.Tanh,), tanh),
    ((nn.GELU,), gelu),
    ((nn.LeakyReLU,), leaky_relu),
    ((nn.PReLU,), functions.prelu),
    ((nn.ELU,), functions.elu),
    ((nn.CELU,), functions.celu),
    ((nn.SELU,), selu),
    ((nn.Mish,), mish),
    ((nn.Softplus,), functions.softplus),
    ((nn.Softmax,), softmax),
    ((nn.modules.pooling._MaxPoolNd,), shapes.max_pool),
    ((nn.modules.pooling._AvgPoolNd,), shapes.average_pool),
    ((nn.modules.pooling._AdaptiveAvgPoolNd,), shapes.adaptive_average_pool),
    ((nn.Flatten, nn.Unflatten), shapes.reshape),
    ((nn.modules.pooling._AdaptiveMaxPoolNd,), functions.adaptive_max_pool),
    (shapes.PADS, shapes.pad),
    ((nn.ChannelShuffle,), resize.channel_shuffle),
    ((nn.PixelShuffle,), resize.pixel_shuffle),
    ((nn.PixelUnshuffle,), resize.pixel_unshuffle),
    ((nn.Identity,), shapes.identity),
    ((nn.modules.dropout._DropoutNd,), shapes.dropout),
)
_FUNCTIONS: dict[Any, Handler] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), layers.conv),
    F.linear: layers.linear,
    F.layer_norm: layers.layer_norm,
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), relu),
    **dict.fromkeys((F.relu6, F.hardtanh), clip),
    **dict.fromkeys((torch.sigmoid, F.sigmoid), sigmoid),
    **dict.fromkeys((torch.tanh, F.tanh), tanh),
    F.hardsigmoid: hardsigmoid,
    F.hardswish: hardswish,
    F.silu: silu,
    F.gelu: gelu,
    F.leaky_relu: leaky_relu,
    **dict.fromkeys((F.prelu, torch.prelu), functions.prelu),
    F.elu: functions.elu,
    F.celu: functions.celu,
    F.selu: selu,
    F.mish: mish,
    F.softplus: functions.softplus,
    torch.exp: exp,
    torch.abs: absolute,
    torch.amax: amax,
    torch.sum: total,
    F.channel_shuffle: resize.channel_shuffle,
    F.pixel_shuffle: resize.pixel_shuffle,
    F.pixel_unshuffle: resize.pixel_unshuffle,
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), functions.adaptive_max_pool),
    **dict.fromkeys((F.softmax, torch.softmax), softmax),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), divide),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), shapes.concat),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool2d), shapes.max_pool),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), shapes.average_pool),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), shapes.adaptive_average_pool),
    torch.mean: shapes.mean,
    **dict.fromkeys((torch.flatten, torch.reshape, torch.unflatten, torch.squeeze, torch.unsqueeze), shapes.reshape),
    torch.permute: shapes.permute,
    **dict.fromkeys((torch.transpose, torch.swapaxes), shapes.transpose),
    **dict.fromkeys((F.pad, torch.constant_pad_nd), shapes.pad),
    operator.getitem: shapes.getitem,
    **dict.fromkeys((torch.chunk, torch.split), shapes.split),
    torch.unbind: shapes.unbind,
    torch.index_select: shapes.index_select,
    **dict.fromkeys((torch.matmul, operator.matmul, torch.bmm), layers.product),
    **dict.fromkeys((torch.clone, torch.detach), shapes.identity),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), shapes.dropout),
}
_METHODS: dict[str, Handler] = {
    **dict.fromkeys(("relu", "relu_"), relu),
    "sigmoid": sigmoid,
    "tanh": tanh,
    "softmax": softmax,
    **dict.fromkeys(("add", "add_"), add),
    **dict.fromkeys(("sub", "sub_"), subtract),
    **dict.fromkeys(("mul", "mul_"), multiply),
    **dict.fromkeys(("div", "div_"), divide),
    "mean": shapes.mean,
    "amax": amax,
    "sum": total,
    "exp": exp,
    "abs": absolute,
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), shapes.reshape),
    "permute": shapes.permute,
    **dict.fromkeys(("transpose", "swapaxes"), shapes.transpose),
    **dict.fromkeys(("chunk", "split"), shapes.split),
    "unbind": shapes.unbind,
    "index_select": shapes.index_select,
    **dict.fromkeys(("matmul", "bmm"), layers.product),
    **dict.fromkeys(("contiguous", "clone", "detach"), shapes.identity),
}


def handler_of(node: fx.Node, module: nn.Module | None) -> Handler | None:
    """The handler of what a node calls; None where there is none."""
    if isinstance(module, nn.Upsample) or node.target is F.interpolate:
        return resize.nearest if operator_of(node, module) == "keep" else resize.resize
    if module is not None:
        return next((handler for types, handler in _MODULES if isinstance(module, types)), None)
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if function_name(node) == "stochastic_depth":  # torchvision's; the identity in eval mode
        return shapes.identity
    try:
        return _FUNCTIONS.get(node.target)
    except TypeError:  # a callable without a hash
        return None


def clamps_of(node: fx.Node, module: nn.Module | None) -> tuple[float, float | None] | None:
    """The limits of a ReLU, ReLU6 or Hardtanh; None for anything else."""
    handler = handler_of(node, module)
    if handler is relu:
        return 0.0, None
    return clip_limits(module, function_name(node), node.args, node.kwargs) if handler is clip else None
