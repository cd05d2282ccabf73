"""What moves values about, as ONNX nodes: reshaping, slicing, joining, padding, pooling."""

from __future__ import annotations

from qexp.deploy.onnx.layers import pair
from qexp.deploy.onnx.node import Call, Value

_END = 2**62  # of a slice without one


def reshape(call: Call) -> str:
    """Reshape to what it gave on the example, whatever the number of images."""
    return call.emit("Reshape", call.activation().name, call.integers(0, *call.shape[1:]))


def identity(call: Call) -> Value:
    """Nothing: dropout in eval mode, contiguous, clone."""
    return call.activation()


def dropout(call: Call) -> Value:
    """Nothing, unless its forward trains even in eval mode."""
    if call.module is None and call.argument(2, "training", True):
        call.refuse("it drops in eval mode too")
    return call.activation()


def permute(call: Call) -> str:
    """Transpose by a permutation."""
    dims = call.argument(1, "dims") if call.module is None else None
    order = call.args[1:] if isinstance(dims, int) else dims
    return call.emit("Transpose", call.activation().name, perm=[int(dim) % len(call.shape) for dim in order])


def transpose(call: Call) -> str:
    """Transpose of two dimensions."""
    order = list(range(len(call.shape)))
    first, second = (int(call.argument(place, name)) for place, name in ((1, "dim0"), (2, "dim1")))
    order[first], order[second] = order[second], order[first]
    return call.emit("Transpose", call.activation().name, perm=order)


def pad(call: Call) -> str:
    """Pad with zeros."""
    amounts, mode = [int(each) for each in call.argument(1, "pad")], call.argument(2, "mode", "constant")
    if mode != "constant" or call.argument(3, "value") not in (None, 0, 0.0) or min(amounts) < 0:
        call.refuse("it pads with other than zeros")
    rank = len(call.shape)
    begins, ends = [0] * rank, [0] * rank
    for place in range(len(amounts) // 2):
        begins[-1 - place], ends[-1 - place] = amounts[2 * place], amounts[2 * place + 1]
    return call.emit("Pad", call.activation().name, call.integers(*begins, *ends))


def getitem(call: Call) -> str | Value:
    """Slice, or one of the results of chunk and split."""
    source, index = call.args
    if isinstance(source, tuple):
        return source[index]
    x, given = call.activation(), list(index if isinstance(index, tuple) else (index,))
    if Ellipsis in given:
        place = given.index(Ellipsis)
        given[place : place + 1] = [slice(None)] * (len(x.shape) - len(given) + 1)
    cuts = [(axis, item) for axis, item in enumerate(given) if item != slice(None)]
    if not all(isinstance(item, int | slice) for _, item in cuts):
        call.refuse("it selects by other than numbers and slices")
    rows = []
    for axis, item in cuts:
        if isinstance(item, int):
            item = slice(item, item + 1 if item != -1 else None)
        rows.append((item.start or 0, _END if item.stop is None else item.stop, axis, item.step or 1))
    if not rows:
        return x
    starts, ends, axes, steps = zip(*rows, strict=True)
    found = call.emit("Slice", x.name, *(call.integers(*each) for each in (starts, ends, axes, steps)))
    chosen = any(isinstance(item, int) for _, item in cuts)
    return call.emit("Reshape", found, call.integers(0, *call.shape[1:])) if chosen else found


def split(call: Call) -> tuple[str, ...]:
    """Split into what chunk, split and unbind's relatives gave on the example."""
    x, dim = call.activation(), int(call.argument(2, "dim", 0))
    sizes = call.integers(*(part.shape[dim] for part in call.result))
    axis = dim % len(x.shape)
    return tuple(call.shelf.writer.node("Split", [x.name, sizes], call.name, len(call.result), axis=axis))


def concat(call: Call) -> str:
    """Concat."""
    tensors, dim = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    return call.emit("Concat", *(call.operand(each) for each in tensors), axis=int(dim) % len(call.shape))


def max_pool(call: Call) -> str:
    """MaxPool."""
    rank, kernel = len(call.shape) - 2, call.argument(1, "kernel_size")
    if call.argument(6, "return_indices", False):
        call.refuse("it returns indices")
    attributes = {
        "kernel_shape": pair(kernel, rank),
        "strides": pair(call.argument(2, "stride") or kernel, rank),
        "pads": pair(call.argument(3, "padding", 0), rank) * 2,
        "dilations": pair(call.argument(4, "dilation", 1), rank),
        "ceil_mode": int(call.argument(5, "ceil_mode", False)),
    }
    return call.emit("MaxPool", call.activation().name, **attributes)


def average_pool(call: Call) -> str:
    """AveragePool."""
    rank, kernel = len(call.shape) - 2, call.argument(1, "kernel_size")
    if call.argument(4, "ceil_mode", False) or call.argument(6, "divisor_override") is not None:
        call.refuse("it has ceil_mode or divisor_override")
    attributes = {
        "kernel_shape": pair(kernel, rank),
        "strides": pair(call.argument(2, "stride") or kernel, rank),
        "pads": pair(call.argument(3, "padding", 0), rank) * 2,
        "count_include_pad": int(call.argument(5, "count_include_pad", True)),
    }
    return call.emit("AveragePool", call.activation().name, **attributes)


def adaptive_average_pool(call: Call) -> str | Value:
    """GlobalAveragePool, or AveragePool where the output divides the image size that is exported."""
    x = call.activation()
    before, after = x.shape[2:], call.shape[2:]
    if before == after:
        return x
    if all(size == 1 for size in after):
        return call.emit("GlobalAveragePool", x.name)
    if any(size % count for size, count in zip(before, after, strict=True)):
        call.refuse(f"it averages {list(before)} pixels to {list(after)}, in windows of unequal sizes")
    window = [size // count for size, count in zip(before, after, strict=True)]
    return call.emit("AveragePool", x.name, kernel_shape=window, strides=window)


def mean(call: Call) -> str:
    """GlobalAveragePool over all pixels, which runtimes have in integers; else ReduceMean."""
    x, dims, keep = call.activation(), call.argument(1, "dim"), bool(call.argument(2, "keepdim", False))
    if dims is None:
        call.refuse("it averages over the batch")
    axes = sorted(dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims))
    if len(x.shape) == 4 and axes == [2, 3]:
        found = call.emit("GlobalAveragePool", x.name)
        return found if keep else call.emit("Reshape", found, call.integers(0, *call.shape[1:]))
    return call.emit("ReduceMean", x.name, call.integers(*axes), keepdims=int(keep))
