"""How each operator of a network is written to TFLite: its handler for ONNX, which says what a call is -> the one here."""

from __future__ import annotations

from torch import fx, nn

from qexp.deploy.onnx import functions, resize, shapes
from qexp.deploy.onnx import layers as onnx_layers
from qexp.deploy.onnx import operators as onnx
from qexp.deploy.tflite import elementwise, layers, moves
from qexp.deploy.tflite.elementwise import Handler, binary, unary

_HANDLERS: dict[onnx.Handler, Handler] = {
    onnx_layers.conv: layers.conv,
    onnx_layers.linear: layers.linear,
    onnx_layers.batch_norm: layers.batch_norm,
    onnx_layers.layer_norm: elementwise.layer_norm,
    onnx.relu: elementwise.relu,
    onnx.clip: elementwise.clip,
    onnx.sigmoid: unary("LOGISTIC"),
    onnx.tanh: unary("TANH"),
    onnx.exp: unary("EXP"),
    onnx.absolute: unary("ABS"),
    onnx.hardswish: unary("HARD_SWISH"),
    onnx.hardsigmoid: elementwise.hardsigmoid,
    onnx.silu: elementwise.silu,
    onnx.gelu: elementwise.gelu,
    onnx.leaky_relu: elementwise.leaky_relu,
    onnx.softmax: elementwise.softmax,
    functions.elu: elementwise.elu,
    functions.prelu: elementwise.prelu,
    onnx.add: binary("ADD"),
    onnx.subtract: binary("SUB"),
    onnx.multiply: binary("MUL"),
    onnx.divide: binary("DIV", integer=False),
    shapes.max_pool: moves.max_pool,
    shapes.average_pool: moves.average_pool,
    shapes.adaptive_average_pool: moves.adaptive_average_pool,
    shapes.mean: moves.mean,
    shapes.reshape: moves.reshape,
    shapes.permute: moves.permute,
    shapes.transpose: moves.transpose,
    shapes.pad: moves.pad,
    shapes.concat: moves.concat,
    shapes.getitem: moves.getitem,
    shapes.split: moves.split,
    shapes.identity: moves.identity,
    shapes.dropout: moves.dropout,
    resize.channel_shuffle: moves.channel_shuffle,
    resize.nearest: moves.resize,
    resize.resize: moves.resize,
}
# What gives values of its one operand alone, each by itself: codes of a grid that comes behind it may as well come before it.
MOVES: tuple[Handler, ...] = (moves.reshape, moves.permute, moves.transpose, moves.identity, moves.dropout)
LAYERS: tuple[Handler, ...] = (layers.conv, layers.linear)


def handler_of(node: fx.Node, module: nn.Module | None) -> Handler | None:
    """The handler of what a node calls; None where there is none."""
    known = onnx.handler_of(node, module)
    return None if known is None else _HANDLERS.get(known)
