"""Operators that move values, as ONNX nodes: reshaping, slicing, joining, padding, pooling."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from qexp.deploy.graph_call import Constant, GraphCall
from qexp.deploy.onnx.layers import pair
from qexp.deploy.onnx.node import OnnxNode, Value

_END = 2**62  # of a slice without one
PADS = (
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)
_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}  # torch's -> ONNX's


def reshape(node: OnnxNode) -> str:
    """Reshape to what it gave on the example, whatever the number of images."""
    return node.emit("Reshape", node.activation().name, node.integers(*node.sizes))


def identity(node: OnnxNode) -> Value:
    """Nothing: dropout in eval mode, contiguous, clone."""
    return node.activation()


def dropout(node: OnnxNode) -> Value:
    """Nothing, unless its forward trains even in eval mode."""
    if node.module is None and node.argument(2, "training", True):
        node.refuse("it drops in eval mode too")
    return node.activation()


def permute(node: OnnxNode) -> str:
    """Transpose by a permutation."""
    dims = node.argument(1, "dims")
    order = node.args[1:] if isinstance(dims, int) else dims
    return node.emit("Transpose", node.activation().name, perm=[int(dim) % len(node.shape) for dim in order])


def transpose(node: OnnxNode) -> str:
    """Transpose of two dimensions."""
    order = list(range(len(node.shape)))
    first, second = (int(node.argument(position, name)) for position, name in ((1, "dim0"), (2, "dim1")))
    order[first], order[second] = order[second], order[first]
    return node.emit("Transpose", node.activation().name, perm=order)


def pad(node: OnnxNode) -> str:
    """Pad with zeros, or with values from within."""
    mode, begins, ends = padding_of(node)
    x = node.activation()
    if x.pads:  # zeros, which were left to a convolution that this stands before
        if mode != "constant":
            node.refuse("it pads behind zeros that were padded before")
        half = len(x.pads) // 2
        for place, (before, behind) in enumerate(zip(x.pads[:half], x.pads[half:], strict=True)):
            begins[place - half] += before
            ends[place - half] += behind
    if mode == "circular":
        return _wrapped(node, x.name, begins, ends)
    return node.emit("Pad", x.name, node.integers(*begins, *ends), mode=_MODES[mode])


def _wrapped(node: OnnxNode, name: str, begins: Sequence[int], ends: Sequence[int]) -> str:
    """What lies at one end put before the other, by Slice and Concat: OpenVINO has no padding mode `wrap`."""
    for axis, (before, behind) in enumerate(zip(begins, ends, strict=True)):
        parts = [name]
        if before:
            last = node.emit("Slice", name, node.integers(-before), node.integers(_END), node.integers(axis))
            parts.insert(0, last)
        if behind:
            parts.append(node.emit("Slice", name, node.integers(0), node.integers(behind), node.integers(axis)))
        name = node.emit("Concat", *parts, axis=axis) if len(parts) > 1 else name
    return name


def padding_of(node: GraphCall) -> tuple[str, list[int], list[int]]:
    """How a padding fills, and how much it puts before and behind each dimension; negative amounts cut off."""
    amounts = [int(amount) for amount in node.argument(1, "pad" if node.module is None else "padding")]
    kind = type(node.module).__name__
    named = next((mode for mode in ("reflect", "replicat", "circular") if kind.lower().startswith(mode)), "constant")
    mode = str(node.argument(2, "mode", "constant")) if node.module is None else {"replicat": "replicate"}.get(named, named)
    if mode == "constant" and node.argument(3, "value") not in (None, 0, 0.0):
        node.refuse("it pads with a number that is not zero")
    if mode != "constant" and min(amounts) < 0:
        node.refuse("it cuts off where it pads by values from within")
    rank = len(node.shape)
    begins, ends = [0] * rank, [0] * rank
    for dimension in range(len(amounts) // 2):
        begins[-1 - dimension], ends[-1 - dimension] = amounts[2 * dimension], amounts[2 * dimension + 1]
    return mode, begins, ends


def left_to_convs(node: OnnxNode) -> Value | None:
    """The value before a padding of zeros, which the convolutions that read it pad themselves.

    None where batch or channels are padded, or by other than zeros.

    A Pad between DequantizeLinear and a convolution keeps runtimes from fusing the two.
    """
    x, (mode, begins, ends) = node.activation(), padding_of(node)
    if mode != "constant" or any((*begins[:2], *ends[:2])) or len(node.shape) < 3 or min(*begins, *ends) < 0:
        return None
    before = x.pads or (0,) * (2 * (len(node.shape) - 2))
    pads = tuple(old + new for old, new in zip(before, (*begins[2:], *ends[2:]), strict=True))
    return replace(x, pads=pads)


def getitem(node: OnnxNode) -> str | Value:
    """Slice, or one of the results of chunk and split."""
    source, index = node.args
    if isinstance(source, tuple):
        return source[index]
    x, indices = node.activation(), list(index if isinstance(index, tuple) else (index,))
    if isinstance(index, int):  # of the first dimension, which so is not that of the images
        return node.emit("Gather", x.name, node.index(index), axis=0)
    if Ellipsis in indices:
        position = indices.index(Ellipsis)
        indices[position : position + 1] = [slice(None)] * (len(x.shape) - len(indices) + 1)
    cuts = [(axis, cut) for axis, cut in enumerate(indices) if cut != slice(None)]
    if not all(isinstance(cut, int | slice) for _, cut in cuts):
        node.refuse("it selects by other than numbers and slices")
    rows = []
    for axis, cut in cuts:
        if isinstance(cut, int):
            cut = slice(cut, cut + 1 if cut != -1 else None)
        rows.append((cut.start or 0, _END if cut.stop is None else cut.stop, axis, cut.step or 1))
    if not rows:
        return x
    starts, ends, axes, steps = zip(*rows, strict=True)
    sliced = node.emit("Slice", x.name, *(node.integers(*part) for part in (starts, ends, axes, steps)))
    chosen = any(isinstance(cut, int) for _, cut in cuts)
    return node.emit("Reshape", sliced, node.integers(*node.sizes)) if chosen else sliced


def split(node: OnnxNode) -> tuple[str, ...]:
    """Split into what chunk, split and unbind's relatives gave on the example."""
    x, dim = node.activation(), int(node.argument(2, "dim", 0))
    axis = dim % len(x.shape)
    if axis == node.batch:
        node.refuse("it cuts the batch")
    sizes = node.integers(*(part.shape[dim] for part in node.result))
    return tuple(node.context.writer.node("Split", [x.name, sizes], node.name, len(node.result), axis=axis))


def unbind(node: OnnxNode) -> tuple[str, ...]:
    """A Gather for each index of a dimension, which is dropped."""
    x, dim = node.activation(), int(node.argument(1, "dim", 0)) % len(node.activation().shape)
    return tuple(node.emit("Gather", x.name, node.index(index), axis=dim) for index in range(len(node.result)))


def index_select(node: OnnxNode) -> str:
    """Gather along a dimension."""
    x, dim, index = node.activation(), int(node.argument(1, "dim")), node.argument(2, "index")
    if not isinstance(index, Constant):
        node.refuse("its indices depend on the images")
    return node.emit("Gather", x.name, node.integers(*index.tensor.tolist()), axis=dim % len(x.shape))


def concat(node: OnnxNode) -> str:
    """Concat."""
    tensors, axis = node.argument(0, "tensors"), int(node.argument(1, "dim", 0)) % len(node.shape)
    if axis == 0 and any(isinstance(tensor, Constant) and tensor.per_image for tensor in tensors):
        node.refuse("it joins images and what is repeated for each of them")
    return node.emit("Concat", *(_for_each_image(node, tensor, tensors) for tensor in tensors), axis=axis)


def _for_each_image(node: OnnxNode, tensor: Value | Constant, others: Sequence[Value | Constant]) -> str:
    """An operand of a concatenation; a class token as often as another operand has images."""
    if not isinstance(tensor, Constant) or not tensor.per_image:
        return node.operand(tensor)
    images = next(other.name for other in others if isinstance(other, Value))
    number = node.emit("Shape", images, start=0, end=1)
    sizes = node.emit("Concat", number, node.integers(*tensor.tensor.shape[1:]), axis=0)
    return node.emit("Expand", node.operand(tensor), sizes)


def max_pool(node: OnnxNode) -> str:
    """MaxPool; where windows may end beyond the image, with the padding that gives as many as torch does.

    Rejected: ONNX's `ceil_mode`. Torch leaves out a window that would begin in the padding behind the image; runtimes differ.
    """
    x, rank, kernel = node.activation(), len(node.shape) - 2, node.argument(1, "kernel_size")
    if node.argument(6, "return_indices", False):
        node.refuse("it returns indices")
    kernel_shape, strides = pair(kernel, rank), pair(node.argument(2, "stride") or kernel, rank)
    begins, dilations = pair(node.argument(3, "padding", 0), rank), pair(node.argument(4, "dilation", 1), rank)
    ends = begins
    if node.argument(5, "ceil_mode", False):
        ends = ends_of(x.shape[2:], node.shape[2:], kernel_shape, strides, begins, dilations)
    attributes = {"kernel_shape": kernel_shape, "strides": strides, "pads": [*begins, *ends], "dilations": dilations}
    return node.emit("MaxPool", x.name, ceil_mode=0, **attributes)


def ends_of(
    sizes: Sequence[int],
    counts: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    begins: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """How far the last windows end beyond the image."""
    parts = zip(sizes, counts, kernel, strides, begins, dilations, strict=True)
    return [
        max(0, (count - 1) * stride + (window - 1) * dilation + 1 - size - begin)
        for size, count, window, stride, begin, dilation in parts
    ]


def average_pool(node: OnnxNode) -> str:
    """AveragePool; windows may end beyond the image where what lies there is not counted."""
    x, rank, kernel = node.activation(), len(node.shape) - 2, node.argument(1, "kernel_size")
    kernel_shape, begins = pair(kernel, rank), pair(node.argument(3, "padding", 0), rank)
    strides, counts_pads = pair(node.argument(2, "stride") or kernel, rank), bool(node.argument(5, "count_include_pad", True))
    ends = begins
    if node.argument(4, "ceil_mode", False):
        ends = ends_of(x.shape[2:], node.shape[2:], kernel_shape, strides, begins, [1] * rank)
    if node.argument(6, "divisor_override") is not None or (counts_pads and any(map(operator.gt, ends, begins))):
        node.refuse("it has ceil_mode or divisor_override")
    pads, counted = [*begins, *ends], int(counts_pads)
    return node.emit("AveragePool", x.name, kernel_shape=kernel_shape, strides=strides, pads=pads, count_include_pad=counted)


def adaptive_average_pool(node: OnnxNode) -> str | Value:
    """GlobalAveragePool, or AveragePool where the output divides the image size that is exported."""
    x = node.activation()
    before, after = x.shape[2:], node.shape[2:]
    if before == after:
        return x
    if all(size == 1 for size in after):
        return node.emit("GlobalAveragePool", x.name)
    if any(size % count for size, count in zip(before, after, strict=True)):
        node.refuse(f"it averages {list(before)} pixels to {list(after)}, in windows of unequal sizes")
    window = [size // count for size, count in zip(before, after, strict=True)]
    return node.emit("AveragePool", x.name, kernel_shape=window, strides=window)


def mean(node: OnnxNode) -> str:
    """GlobalAveragePool over all pixels, which runtimes have in integers; else ReduceMean."""
    x, dims, keep = node.activation(), node.argument(1, "dim"), bool(node.argument(2, "keepdim", False))
    if dims is None:
        node.refuse("it averages over the batch")
    axes = sorted(dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims))
    if len(x.shape) == 4 and axes == [2, 3]:
        pooled = node.emit("GlobalAveragePool", x.name)
        return pooled if keep else node.emit("Reshape", pooled, node.integers(*node.sizes))
    return node.emit("ReduceMean", x.name, node.integers(*axes), keepdims=int(keep))
