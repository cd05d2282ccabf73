"""Operators that move or pool values, as TFLite operators: codes stay codes wherever the values are those of their operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from qexp.deploy.onnx.layers import pair
from qexp.deploy.onnx.shapes import ends_of, padding_of
from qexp.deploy.tflite.layers import VALID, is_same, pad_image, padded, padded_by
from qexp.deploy.tflite.node import TO_LAST, TfliteNode, Value
from qexp.deploy.tflite.writer import INT8

_END = 2**31 - 1  # of a slice without one


def identity(node: TfliteNode) -> Value:
    """Nothing: dropout in eval mode, contiguous, clone."""
    return node.activation()


def dropout(node: TfliteNode) -> Value:
    """Nothing, unless its forward trains even in eval mode."""
    if node.module is None and node.argument(2, "training", True):
        node.refuse("it drops in eval mode too")
    return node.activation()


def reshape(node: TfliteNode) -> Value:
    """RESHAPE to what it gave on the example, whatever the number of images."""
    x, shape = node.activation(), node.shape
    sizes = [-1 if axis == 0 else size for axis, size in enumerate(shape)]
    if x.last and shape == (x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]):
        flat = node.emit("RESHAPE", x.tensor, node.context.integers(*sizes), grid=x.grid)
        c, h, w = x.shape[1:]
        return replace(flat, pixels=(c, h, w) if h * w > 1 and c > 1 else None)
    x = node.context.plain(x)
    if len(shape) == 4 and shape[2:] == (1, 1):
        return node.emit("RESHAPE", x.tensor, node.context.integers(-1, 1, 1, shape[1]), grid=x.grid, last=True)
    return node.emit("RESHAPE", x.tensor, node.context.integers(*sizes), grid=x.grid)


def permute(node: TfliteNode) -> Value:
    """TRANSPOSE by a permutation."""
    dims = node.argument(1, "dims")
    order = [int(dim) % len(node.shape) for dim in (node.args[1:] if isinstance(dims, int) else dims)]
    return _transposed(node, order)


def transpose(node: TfliteNode) -> Value:
    """TRANSPOSE of two dimensions."""
    order = list(range(len(node.shape)))
    first, second = (int(node.argument(position, name)) for position, name in ((1, "dim0"), (2, "dim1")))
    order[first], order[second] = order[second], order[first]
    return _transposed(node, order)


def _transposed(node: TfliteNode, order: Sequence[int]) -> Value:
    if order[0] != 0:
        node.refuse("it moves the dimension of the images")
    x = node.context.plain(node.activation())
    return node.emit("TRANSPOSE", x.tensor, node.context.integers(*order), grid=x.grid)


def pad(node: TfliteNode) -> Value:
    """PAD with zeros."""
    mode, begins, ends = padding_of(node)
    if mode != "constant" or begins[0] or ends[0] or min(*begins, *ends) < 0:
        node.refuse("it pads otherwise than each image with zeros")
    x = node.activation()
    half = len(x.pads) // 2
    for place, (before, behind) in enumerate(zip(x.pads[:half], x.pads[half:], strict=True)):
        begins[place - half] += before
        ends[place - half] += behind
    x = node.context.plain(x) if x.pixels is not None else x
    return padded_by(node, replace(x, pads=()), list(zip(begins, ends, strict=True)))


def left_to_convs(node: TfliteNode) -> Value | None:
    """The value before a padding of zeros, which the convolutions that read it pad themselves; None of another padding."""
    mode, begins, ends = padding_of(node)
    x = node.activation()
    if mode != "constant" or len(node.shape) != 4 or any((*begins[:2], *ends[:2])) or min(*begins, *ends) < 0:
        return None
    before = x.pads or (0,) * 4
    return replace(x, pads=tuple(old + new for old, new in zip(before, (*begins[2:], *ends[2:]), strict=True)))


def concat(node: TfliteNode) -> Value:
    """CONCATENATION of codes on one grid, or brought to that of the result; else of floats."""
    tensors, axis = node.argument(0, "tensors"), int(node.argument(1, "dim", 0)) % len(node.shape)
    if axis == 0 or not all(isinstance(tensor, Value) for tensor in tensors):
        node.refuse("it joins images, or other than activations")
    first, target = tensors[0].grid, node.target
    if first is not None and all(first.same(tensor.grid) for tensor in tensors):
        grid = first
    elif target is not None and target.clamp is None:
        grid = target.grid
        tensors = [node.context.limited(node.context.on_grid(tensor, grid)) for tensor in tensors]
    else:
        grid, tensors = None, [node.context.floats(tensor) for tensor in tensors]
    last = len(node.shape) == 4
    tensors = [node.context.channels_last(tensor) if last else node.context.plain(tensor) for tensor in tensors]
    axis = TO_LAST.index(axis) if last else axis
    return node.emit("CONCATENATION", *(tensor.tensor for tensor in tensors), grid=grid, last=last, axis=axis)


def getitem(node: TfliteNode) -> Value:
    """STRIDED_SLICE, or one of the results of chunk and split."""
    source, index = node.args
    if isinstance(source, tuple):
        one = source[index]
        assert isinstance(one, Value)
        return one
    x, indices = node.activation(), list(index if isinstance(index, tuple) else (index,))
    if Ellipsis in indices:
        position = indices.index(Ellipsis)
        indices[position : position + 1] = [slice(None)] * (len(x.shape) - len(indices) + 1)
    indices += [slice(None)] * (len(x.shape) - len(indices))
    if indices[0] != slice(None) or not all(isinstance(cut, int | slice) for cut in indices):
        node.refuse("it selects images, or by other than numbers and slices")
    cuts = [slice(cut, cut + 1 if cut != -1 else None) if isinstance(cut, int) else cut for cut in indices]
    sliced = _sliced(node, x, cuts)
    if not any(isinstance(cut, int) for cut in indices):
        return sliced
    sliced = node.context.plain(sliced)
    sizes = node.context.integers(*(-1 if axis == 0 else size for axis, size in enumerate(node.shape)))
    return node.emit("RESHAPE", sliced.tensor, sizes, grid=sliced.grid)


def split(node: TfliteNode) -> tuple[Value, ...]:
    """A STRIDED_SLICE for each of what chunk and split gave on the example."""
    x, dim = node.activation(), int(node.argument(2, "dim", 0))
    axis, begin, parts = dim % len(x.shape), 0, []
    if axis == 0:
        node.refuse("it cuts the batch")
    for part in node.result:
        cuts = [slice(None)] * len(x.shape)
        cuts[axis] = slice(begin, begin + part.shape[axis])
        parts.append(_sliced(node, x, cuts))
        begin += part.shape[axis]
    return tuple(parts)


def _sliced(node: TfliteNode, x: Value, cuts: list[slice]) -> Value:
    """STRIDED_SLICE along any dimensions but that of the images."""
    if any((cut.step or 1) < 1 for cut in cuts):
        node.refuse("it goes backwards")
    if x.pixels is not None:
        x = node.context.plain(x)
    shape = [len(range(*cut.indices(size))) for cut, size in zip(cuts, x.shape, strict=True)]
    bounds = [cut.indices(size) for cut, size in zip(cuts, x.shape, strict=True)]
    bounds = [bounds[axis] for axis in TO_LAST] if x.last else bounds
    begins, ends, steps = zip(*[(0, _END, 1), *bounds[1:]], strict=True)
    numbers = [node.context.integers(*part) for part in (begins, ends, steps)]
    options = {"beginMask": 1, "endMask": 1}
    return node.context.emit(
        node.name, "STRIDED_SLICE", [x.tensor, *numbers], shape, grid=x.grid, last=x.last, **options
    )  # fmt: skip


def channel_shuffle(node: TfliteNode) -> Value:
    """Channels of groups in turn: [N, H, W, G, C/G] transposed."""
    x, groups = node.context.channels_last(node.activation()), int(node.argument(1, "groups"))
    _, c, h, w = x.shape
    shape, context = (x.shape[0], h, w, groups, c // groups), node.context
    parts = context.emit(f"{node.name}.groups", "RESHAPE", [x.tensor, context.integers(-1, *shape[1:])], shape, grid=x.grid)
    turned, order = (x.shape[0], h, w, c // groups, groups), context.integers(0, 1, 2, 4, 3)
    moved = context.emit(f"{node.name}.turned", "TRANSPOSE", [parts.tensor, order], turned, grid=x.grid)
    return node.emit("RESHAPE", moved.tensor, context.integers(-1, h, w, c), grid=x.grid, last=True)


def max_pool(node: TfliteNode) -> Value:
    """MAX_POOL_2D; what lies beyond the image is the least number there is."""
    x, kernel = node.context.channels_last(node.activation()), node.argument(1, "kernel_size")
    if len(node.shape) != 4 or node.argument(6, "return_indices", False):
        node.refuse("it is not of an image, or returns indices")
    sizes, strides = pair(kernel, 2), pair(node.argument(2, "stride") or kernel, 2)
    begins, dilations = pair(node.argument(3, "padding", 0), 2), pair(node.argument(4, "dilation", 1), 2)
    if dilations != [1, 1]:
        node.refuse("it is dilated")
    ends = ends_of(x.shape[2:], node.shape[2:], sizes, strides, begins, dilations)
    x, padding = _padded_pool(node, x, [*begins, *ends], sizes, strides)
    return node.emit("MAX_POOL_2D", x.tensor, grid=x.grid, last=True, **_window(sizes, strides, padding))


def _window(sizes: Sequence[int], strides: Sequence[int], padding: int) -> dict[str, Any]:
    sides = {"filterHeight": sizes[0], "filterWidth": sizes[1], "strideH": strides[0], "strideW": strides[1]}
    return {"padding": padding, **sides}


def _padded_pool(node: TfliteNode, x: Value, pads: list[int], sizes: list[int], strides: list[int]) -> tuple[Value, int]:
    """The operand of a maximum; where SAME does not do the same, padded below all values.

    Where no value is below zero, that is zero, which PAD fills in, as runtimes have it fast; PADV2 fills in any.
    """
    grid, name = x.grid, f"{node.name}.least"
    if not any(pads) or is_same(node, x, pads, sizes, strides, [1, 1]) or (grid and grid.zero_point <= grid.qparams.quant_min):
        return padded(node, x, pads, sizes, strides, [1, 1])
    if grid is None:
        least = node.context.writer.constant(name, torch.tensor([torch.finfo(torch.float32).min]))
    else:
        codes = torch.tensor([grid.ends[0]], dtype=torch.int8 if grid.dtype == INT8 else torch.int16)
        least = node.context.writer.constant(name, codes, scale=grid.qparams.scale, zero_point=grid.zero_point)
    return pad_image(node, x, pads, least), VALID


def average_pool(node: TfliteNode) -> Value:
    """AVERAGE_POOL_2D; of codes DEPTHWISE_CONV_2D with weights of 1, which may give codes on another grid, as that may not."""
    kernel, counts_pads = node.argument(1, "kernel_size"), bool(node.argument(5, "count_include_pad", True))
    if len(node.shape) != 4 or node.argument(6, "divisor_override") is not None:
        node.refuse("it is not of an image, or has divisor_override")
    sizes, strides = pair(kernel, 2), pair(node.argument(2, "stride") or kernel, 2)
    begins, x = pair(node.argument(3, "padding", 0), 2), node.context.channels_last(node.activation())
    ends = ends_of(x.shape[2:], node.shape[2:], sizes, strides, begins, [1, 1])
    if counts_pads and any(end > begin for begin, end in zip(begins, ends, strict=True)):
        node.refuse("it has ceil_mode")
    return _average(node, x, [*begins, *ends], sizes, strides, counts_pads)


def _average(node: TfliteNode, x: Value, pads: list[int], sizes: list[int], strides: list[int], counts_pads: bool) -> Value:
    context, target = node.context, node.target
    integer = target is not None and x.grid is not None and x.grid.dtype == target.grid.dtype == INT8
    if not integer or (any(pads) and not counts_pads):
        x = context.floats(x)
        if any(pads) and not counts_pads and not is_same(node, x, pads, sizes, strides, [1, 1]):
            node.refuse("it averages windows that end beyond the image without what lies there")
        explicit = any(pads) and counts_pads
        x, padding = (pad_image(node, x, pads), VALID) if explicit else padded(node, x, pads, sizes, strides, [1, 1])
        return node.emit("AVERAGE_POOL_2D", x.tensor, last=True, **_window(sizes, strides, padding))
    assert target is not None and x.grid is not None
    x, padding = padded(node, x, pads, sizes, strides, [1, 1])
    assert x.grid is not None
    channels, scale = x.shape[1], torch.tensor(1 / (sizes[0] * sizes[1]))
    ones = context.writer.constant(f"{node.name}.ones", torch.ones(1, *sizes, channels, dtype=torch.int8), scale=scale, axis=3)
    zeros = torch.zeros(channels, dtype=torch.int32)
    offset = context.writer.constant(f"{node.name}.zeros", zeros, scale=x.grid.qparams.scale.cpu() * scale)
    options = {"padding": padding, "strideH": strides[0], "strideW": strides[1], "depthMultiplier": 1}
    options["fusedActivationFunction"] = target.fused or 0
    return node.finished(node.emit("DEPTHWISE_CONV_2D", x.tensor, ones, offset, grid=target.grid, last=True, **options))


def adaptive_average_pool(node: TfliteNode) -> Value:
    """MEAN over all pixels, or windows where the output divides the image size that is exported."""
    x = node.context.channels_last(node.activation())
    before, after = x.shape[2:], node.shape[2:]
    if before == after:
        return x
    if after == (1, 1):
        return _mean(node, x, (1, 2), keep=True, last=True)
    if len(before) != 2 or any(size % count for size, count in zip(before, after, strict=True)):
        node.refuse(f"it averages {list(before)} pixels to {list(after)}, in windows of unequal sizes")
    window = [size // count for size, count in zip(before, after, strict=True)]
    return _average(node, x, [0] * 4, window, window, True)


def mean(node: TfliteNode) -> Value:
    """MEAN: of codes where all pixels of an image are averaged and the result goes to codes."""
    x, dims, keep = node.activation(), node.argument(1, "dim"), bool(node.argument(2, "keepdim", False))
    axes = sorted(dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims or (0,)))
    if 0 in axes:
        node.refuse("it averages over the batch")
    if len(x.shape) == 4 and axes == [2, 3]:
        return _mean(node, node.context.channels_last(x), (1, 2), keep=keep, last=keep)
    return _mean(node, node.context.floats(node.context.plain(x)), axes, keep=keep, last=False)


def _mean(node: TfliteNode, x: Value, axes: Sequence[int], *, keep: bool, last: bool) -> Value:
    target = node.target
    if target is None or x.grid is None or x.grid.dtype != target.grid.dtype:
        return node.emit("MEAN", node.context.floats(x).tensor, node.context.integers(*axes), last=last, keepDims=keep)
    y = node.emit("MEAN", x.tensor, node.context.integers(*axes), grid=target.grid, last=last, keepDims=keep)
    low, high = target.clamp or (None, None)
    y = node.context.clamped(y, low, high)
    return replace(node.context.limited(y), final=True)


def resize(node: TfliteNode) -> Value:
    """RESIZE_NEAREST_NEIGHBOR of codes or floats, RESIZE_BILINEAR of floats, as torch places pixels."""
    x, mode = node.context.channels_last(node.activation()), str(node.argument(3, "mode", "nearest"))
    if len(node.shape) != 4 or (node.module is None and node.argument(6, "antialias", False)):
        node.refuse("it is not of an image, or has antialiasing")
    before, after, factor = x.shape[2:], node.shape[2:], node.argument(2, "scale_factor")
    factors = [1.0, 1.0] if factor is None else factor if isinstance(factor, list | tuple) else [factor] * 2
    whole = all(size * one == count for size, one, count in zip(before, factors, after, strict=True))
    if factor is not None and not whole and not node.argument(5, "recompute_scale_factor", False):
        node.refuse("its scale_factor gives no whole number of pixels")
    sizes, corners = node.context.integers(*after), bool(node.argument(4, "align_corners", False))
    if mode == "nearest":
        return node.emit("RESIZE_NEAREST_NEIGHBOR", x.tensor, sizes, grid=x.grid, last=True)
    if mode != "bilinear":
        node.refuse(f"its mode is {mode}")
    options: dict[str, Any] = {"alignCorners": corners, "halfPixelCenters": not corners}
    return node.emit("RESIZE_BILINEAR", node.context.floats(x).tensor, sizes, last=True, **options)
