"""Layers and norms as TFLite operators.

A layer is in integers where it reads codes, its weight has codes and its result goes to codes: CONV_2D, DEPTHWISE_CONV_2D or
FULLY_CONNECTED of INT8, or of INT16 activations and INT8 weights where one of its ends has more than 8 bits. No operator takes
codes and gives floats, and so what computes the logits gives INT16 codes of them: its INT8 operand is written as INT16 codes of
the same values. A layer whose result goes to no codes (a SiLU comes first) is computed in float, on the values of its codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qexp.base.text import Note
from qexp.base.types import QParams
from qexp.deploy.graph_call import Constant
from qexp.deploy.int8_files import check_weight
from qexp.deploy.onnx.layers import pads_of, pair
from qexp.deploy.tflite.node import TO_LAST, TfliteNode, Value, wide_grid
from qexp.deploy.tflite.writer import INT8, INT16, TFLITE
from qexp.deploy.weight_codes import WeightCodes, accumulator_scale, bias_codes
from qexp.nn.channels import scale_and_shift

SAME, VALID = 0, 1  # the schema's Padding


def conv(node: TfliteNode) -> Value:
    """CONV_2D, also grouped, or DEPTHWISE_CONV_2D."""
    x, (weight, bias) = node.context.channels_last(node.activation()), _parameters(node)
    if len(node.shape) != 4:
        node.refuse(f"TFLite convolves images in integers, not {len(node.shape) - 2} dimensions")
    if (mode := getattr(node.module, "padding_mode", "zeros")) != "zeros":
        node.refuse(f"its padding is {mode}")
    groups, kernel = int(node.argument(6, "groups", 1)), weight.tensor.shape[2:]
    strides, dilations = pair(node.argument(3, "stride", 1), 2), pair(node.argument(5, "dilation", 1), 2)
    own = pads_of(node.argument(4, "padding", 0), dilations, kernel)
    pads = [mine + before for mine, before in zip(own, x.pads or (0,) * 4, strict=True)]
    x, padding = padded(node, replace(x, pads=()), pads, kernel, strides, dilations)
    options = {"padding": padding, "strideH": strides[0], "strideW": strides[1]}
    options |= {"dilationHFactor": dilations[0], "dilationWFactor": dilations[1]}
    channels = x.shape[1]
    if groups == channels and groups > 1:
        options["depthMultiplier"] = node.shape[1] // channels
        return _layer(node, "DEPTHWISE_CONV_2D", x, weight, bias, (1, 2, 3, 0), options)
    return _layer(node, "CONV_2D", x, weight, bias, (0, 2, 3, 1), options)


def linear(node: TfliteNode) -> Value:
    """FULLY_CONNECTED."""
    x, (weight, bias) = node.activation(), _parameters(node)
    order = x.pixels if len(x.shape) == 2 else None
    x = x if order is not None else node.context.plain(x)
    return _layer(node, "FULLY_CONNECTED", x, weight, bias, (0, 1), {"keepNumDims": len(x.shape) > 2}, order)


def _parameters(node: TfliteNode) -> tuple[Constant, Constant | None]:
    """Weight and bias of a layer."""
    weight, bias = node.argument(1, "weight"), node.argument(2, "bias")
    if not isinstance(weight, Constant) or not isinstance(bias, Constant | None):
        node.refuse("its weight depends on the images")
    return weight, bias


def padded(
    node: TfliteNode, x: Value, pads: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Value, int]:
    """An image padded with zeros, and the kind of padding that is left to the operator: SAME where it is the same.

    Args:
        node: that reads it.
        x: the image, channels last.
        pads: before each dimension, then behind each.
        kernel: sizes.
        strides: sizes.
        dilations: sizes.
    """
    if not any(pads):
        return x, VALID
    return (x, SAME) if is_same(node, x, pads, kernel, strides, dilations) else (pad_image(node, x, pads), VALID)


def is_same(
    node: TfliteNode, x: Value, pads: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> bool:
    """True where an operator's own padding, as TensorFlow's SAME, puts its windows where these pads do; arguments of `padded`."""
    same = True
    for axis in (0, 1):
        size, count = x.shape[2 + axis], node.shape[2 + axis]
        total = max(0, (count - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - size)
        same &= count == -(-size // strides[axis]) and pads[axis] == total // 2
    return same


def pad_image(node: TfliteNode, x: Value, pads: Sequence[int], fill: int | None = None) -> Value:
    """PAD with zeros, of codes with the code of zero, or PADV2 with a constant.

    Args:
        node: that reads it.
        x: the image, channels last.
        pads: before each dimension, then behind each.
        fill: number of the tensor that holds the constant.
    """
    top, left, bottom, right = pads
    return padded_by(node, x, [(0, 0), (0, 0), (top, bottom), (left, right)], fill)


def padded_by(node: TfliteNode, x: Value, amounts: Sequence[tuple[int, int]], fill: int | None = None) -> Value:
    """PAD or PADV2 of any dimensions; arguments of `pad_image`, but for how much to put before and behind each dimension."""
    order = TO_LAST if x.last else range(len(x.shape))
    table = torch.tensor([amounts[axis] for axis in order], dtype=torch.int32)
    number = node.context.writer.constant(f"{node.name}.pads", table)
    shape = [size + before + behind for size, (before, behind) in zip(x.shape, amounts, strict=True)]
    kind, inputs = ("PAD", [x.tensor, number]) if fill is None else ("PADV2", [x.tensor, number, fill])
    return node.context.emit(f"{node.name}.padded", kind, inputs, shape, grid=x.grid, last=x.last)


def _layer(
    node: TfliteNode,
    kind: str,
    x: Value,
    weight: Constant,
    bias: Constant | None,
    form: tuple[int, ...],
    options: dict[str, Any],
    pixels: tuple[int, int, int] | None = None,
) -> Value:
    """A layer in integers where it can be, else in float.

    Args:
        node: of the layer.
        kind: TFLite's name.
        x: what it reads, in the operator's layout.
        weight: as torch has it.
        bias: of the layer.
        form: the order of the weight's dimensions in the file.
        options: of the operator.
        pixels: of a linear layer, C, H and W of its operand, which lies pixels first.
    """
    target, last = node.target, len(form) == 4
    coded = node.context.weights.get(weight.path)
    if coded is not None:
        check_weight(weight.path, coded, TFLITE)
    if target is None or x.grid is None or coded is None:
        return _float_layer(node, kind, x, weight, bias, form, options, pixels)
    wide = INT16 in (x.grid.dtype, target.grid.dtype)
    x, y = (node.context.wide(x), wide_grid(target.grid.qparams.scale)) if wide else (x, target.grid)
    y = target.grid if target.grid.dtype == (INT16 if wide else INT8) else y
    assert x.grid is not None
    offset = _bias(node, bias, x.grid.qparams, coded, wide)
    if offset is None:
        return _float_layer(node, kind, x, weight, bias, form, options, pixels)
    inputs = [x.tensor, _codes(node, weight, coded, form, pixels), offset]
    result = node.emit(kind, *inputs, grid=y, last=last, fusedActivationFunction=target.fused or 0, **options)
    return node.finished(node.context.on_grid(result, target.grid))


def _float_layer(
    node: TfliteNode,
    kind: str,
    x: Value,
    weight: Constant,
    bias: Constant | None,
    form: tuple[int, ...],
    options: dict[str, Any],
    pixels: tuple[int, int, int] | None,
) -> Value:
    """A layer on float values; its weight's codes, where it has such, are dequantized on loading."""
    context, x = node.context, node.context.floats(x)
    path, coded = weight.path or f"{node.name}.weight", node.context.weights.get(weight.path)
    if coded is None:
        context.stored[path] = "FLOAT"
        number = context.writer.constant(path, _arranged(weight.tensor.float(), form, pixels))
    else:
        codes = _codes(node, weight, coded, form, pixels)
        number = context.writer.value(f"{path}.values", context.writer.tensors[codes].shape, batch=None)
        context.writer.operator("DEQUANTIZE", [codes], number)
    bias_path = f"{node.name}.bias" if bias is None else bias.path or f"{node.name}.bias"
    context.stored[bias_path] = "FLOAT"
    values = torch.zeros(_outputs(weight.tensor)) if bias is None else bias.tensor.float()
    inputs = [x.tensor, number, context.writer.constant(bias_path, values)]
    return node.emit(kind, *inputs, last=len(form) == 4, **options)


def _outputs(weight: Tensor) -> int:
    return int(weight.shape[0])


def _arranged(values: Tensor, form: tuple[int, ...], pixels: tuple[int, int, int] | None) -> Tensor:
    """A weight as the file has it: [O, H, W, I], depthwise [1, H, W, O], a matrix with its columns as its operand lies."""
    if pixels is not None:
        return values.reshape(-1, *pixels).permute(0, 2, 3, 1).flatten(1)
    return values.permute(form).contiguous()


def _codes(
    node: TfliteNode, weight: Constant, coded: WeightCodes, form: tuple[int, ...], pixels: tuple[int, int, int] | None
) -> int:
    """The INT8 codes of a weight and their scales, written once in each form."""
    context, key = node.context, (weight.path, form, pixels)
    if key not in context.constants:
        codes = _arranged(coded.codes, form, pixels).to(torch.int8)
        axis = form.index(0)
        context.constants[key] = context.writer.constant(weight.path, codes, scale=coded.qparams.scale, axis=axis)
        context.stored[weight.path] = INT8
    return context.constants[key]


def _bias(node: TfliteNode, bias: Constant | None, x: QParams, coded: WeightCodes, wide: bool) -> int | None:
    """A bias as codes of s_x * s_w, INT32, or INT64 beside INT16 activations; None where it is beyond INT32."""
    scale, path = accumulator_scale(x, coded.qparams), f"{node.name}.bias" if bias is None else bias.path or f"{node.name}.bias"
    values = torch.zeros(_outputs(coded.codes)) if bias is None else bias.tensor
    codes = torch.round(values.double() / scale.double()) if wide else bias_codes(values, scale)
    if codes is None:
        node.context.notes.append(Note(node.name, "computed in float: its bias is beyond int32 at the scale of its accumulator"))
        return None
    node.context.stored[path] = "INT64" if wide else "INT32"
    return node.context.writer.constant(path, codes.to(torch.int64 if wide else torch.int32), scale=scale)


def batch_norm(node: TfliteNode) -> Value:
    """A batch norm that was not folded: x * gain + shift, in float."""
    norm, x = node.module, node.activation()
    if not isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
        node.refuse("it normalizes with each batch's statistics")
    gamma, beta = scale_and_shift(norm)
    gain = (gamma / torch.sqrt(norm.running_var + norm.eps)).detach()
    shift = (beta - norm.running_mean * gain).detach()
    x = node.context.floats(x if len(x.shape) == 4 else node.context.plain(x))
    shape = (-1, *[1] * (len(x.shape) - 2))
    numbers = [
        node.constant(Constant(values.reshape(shape), f"{node.path}.{name}"), last=x.last)
        for name, values in (("gain", gain), ("shift", shift))
    ]
    scaled = node.context.emit(f"{node.name}.scaled", "MUL", [x.tensor, numbers[0]], x.shape, last=x.last)
    return node.emit("ADD", scaled.tensor, numbers[1], last=x.last)
