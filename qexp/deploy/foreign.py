"""Network files that somebody else wrote, run on the images of an evaluation: .onnx in ONNX Runtime, .tflite in LiteRT.

Such a file says what its input is: its numbers, its layout, its batch. Images reach it as qexp prepares them, since no file says
how it wants them prepared. Codes are clamp(round_half_even(x / scale) + zero_point), by the scale that stands in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexp.base.errors import UserError
from qexp.config.export import runtime_of
from qexp.deploy.onnx.writer import onnx_library
from qexp.deploy.runtimes import INTEGER_OPERATORS, check_installed, graph_of_onnxruntime, onnxruntime_options
from qexp.deploy.tflite.run import layer_operators
from qexp.deploy.tflite.writer import unpack

Array = NDArray[Any]
_FLOATS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(uint8)": "uint8",
          "tensor(int8)": "int8"}  # fmt: skip
_FREE = -1  # a size that is the caller's


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of codes; a scale of 0 where values are floats."""

    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True)
class End:
    """An input or output of a file.

    Args:
        name: in the file.
        shape: sizes, -1 where the caller decides.
        dtype: of numpy.
        grid: of its codes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    grid: Grid

    def __str__(self) -> str:
        sizes = ", ".join("N" if size == _FREE else str(size) for size in self.shape)
        return f"{self.name} [{sizes}] {self.dtype}"


@dataclass(frozen=True, eq=False)
class ForeignFile:
    """A file of somebody else's, loaded.

    Args:
        path: of the file.
        runtime: that runs it.
        source: its input.
        channels_last: images are [N, H, W, C] there.
        batch: images that it takes at once; None where the caller decides.
        num_layers: convolutions and matrix products.
        num_integer: how many of these compute in integers.
        call: runs what the file takes.
        target: its output.
    """

    path: Path
    runtime: str
    source: End
    channels_last: bool
    batch: int | None
    num_layers: int
    num_integer: int
    call: Callable[[Array], Array]
    target: End

    def run(self, images: Tensor) -> Tensor:
        """Float32 [N, C, H, W] -> float32 [N, classes]; the last batch of a file with a batch of its own is filled with zeros."""
        array = (images.movedim(1, -1) if self.channels_last else images).contiguous().numpy()
        coded = _codes(array, self.source)
        size = self.batch or len(coded)
        parts = [coded[start : start + size] for start in range(0, len(coded), size)]
        logits = [_values(self.call(_filled(part, size)), self.target).reshape(size, -1)[: len(part)] for part in parts]
        return torch.from_numpy(np.concatenate(logits))

    def num_beyond(self, images: Tensor) -> int:
        """How many inputs the codes do not hold, so that they are clipped; 0 of floats."""
        if not self.source.dtype.endswith("int8"):
            return 0
        bounds, codes = np.iinfo(self.source.dtype), _unclipped(images.numpy(), self.source)
        return int(((codes < bounds.min) | (codes > bounds.max)).sum())

    @property
    def takes(self) -> str:
        """What its input is, in words: `uint8 NHWC, 1 at a time`."""
        layout, at_once = "NHWC" if self.channels_last else "NCHW", f", {self.batch} at a time" if self.batch else ""
        return f"{self.source.dtype} {layout}{at_once}"


def open_foreign(path: Path, *, image_shape: Sequence[int], num_classes: int, threads: int = 1) -> ForeignFile:
    """Load a file that takes the images of an evaluation and gives its classes.

    Args:
        path: .onnx or .tflite.
        image_shape: (C, H, W).
        num_classes: of the data.
        threads: of one run.

    Raises:
        UserError: no such file, none that its runtime loads, or one with other images, classes or inputs.
    """
    if not path.is_file():
        raise UserError("export.compare", path, allowed="a file that exists")
    runtime = runtime_of(str(path))
    check_installed(runtime)
    try:
        opened = (_open_onnx if runtime == "onnxruntime" else _open_tflite)(path, threads)
    except Exception as error:  # each runtime has errors of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        remedy = f"It says: {max(lines, key=len, default=type(error).__name__)}"
        raise UserError("export.compare", path, allowed=f"a file that {runtime} loads", remedy=remedy) from error
    source, target, channels_last = _matched(path, opened, tuple(image_shape), num_classes)
    batch = source.shape[0] if source.shape[0] != _FREE else None
    call = opened.call_of(source, target)
    return ForeignFile(path, runtime, source, channels_last, batch, *opened.layers, call, target)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A file in its runtime, before anything is known of its ends."""

    sources: list[End]
    targets: list[End]
    prefers_last: bool  # where both layouts fit
    layers: tuple[int, int]  # how many, and how many in integers
    call_of: Callable[[End, End], Callable[[Array], Array]]


def _matched(path: Path, opened: _Opened, image_shape: tuple[int, ...], num_classes: int) -> tuple[End, End, bool]:
    """The input, the output and whether channels come last.

    Raises:
        UserError: they are not what the evaluation has; it names both.
    """
    first, last = image_shape, (*image_shape[1:], image_shape[0])
    shapes = [", ".join(map(str, ("N", *shape))) for shape in (first, last)]
    says = f"It takes {'; '.join(map(str, opened.sources))} and gives {'; '.join(map(str, opened.targets))}."
    targets = [end for end in opened.targets if _fits(end.shape, (num_classes,)) or _fits(end.shape, (num_classes, 1, 1))]
    order = [opened.prefers_last, not opened.prefers_last]
    layouts = [is_last for is_last in order if opened.sources and _fits(opened.sources[0].shape, last if is_last else first)]
    if not targets or not layouts or len(opened.sources) > 1:
        allowed = f"one input, images [{shapes[0]}] or [{shapes[1]}], and logits [N, {num_classes}]"
        raise UserError("export.compare", path, allowed=allowed, remedy=says)
    source = opened.sources[0]
    for end in (source, targets[0]):
        if end.dtype not in _TYPES.values() or (end.dtype.endswith("int8") and not end.grid.scale):
            remedy = f"{says} Nothing in the file says what the numbers of {end.name} mean."
            raise UserError("export.compare", path, allowed="floats, or INT8 or UINT8 codes with a scale", remedy=remedy)
    return source, targets[0], layouts[0]


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """True where a shape behind the batch is the wanted one, as far as it is fixed."""
    return len(shape) == len(wanted) + 1 and all(own in (_FREE, size) for own, size in zip(shape[1:], wanted, strict=True))


def _open_onnx(path: Path, threads: int) -> _Opened:
    """A file in ONNX Runtime; layers are those of the graph that it makes of the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), onnxruntime_options(threads), providers=["CPUExecutionProvider"])
    graph = onnx_library().load(str(path)).graph
    sources = [_onnx_end(one, _grid_of_input(graph, one.name)) for one in session.get_inputs()]
    targets = [_onnx_end(one, _grid_of_output(graph, one.name)) for one in session.get_outputs()]
    kinds = [node.op_type for node in graph_of_onnxruntime(path).node]
    num_integer = sum(kind.startswith(INTEGER_OPERATORS) for kind in kinds)
    layers = (num_integer + sum(kind in _FLOATS for kind in kinds), num_integer)

    def call_of(source: End, target: End) -> Callable[[Array], Array]:
        return lambda array: np.asarray(session.run([target.name], {source.name: array})[0])

    return _Opened(sources, targets, False, layers, call_of)


def _onnx_end(end: Any, grid: Grid) -> End:
    shape = tuple(size if isinstance(size, int) and size > 0 else _FREE for size in end.shape or ())
    return End(end.name, shape, _TYPES.get(end.type, end.type), grid)


def _grid_of_input(graph: Any, name: str) -> Grid:
    """Of what dequantizes an input, or reads its codes."""
    readers = (node for node in graph.node if name in node.input[:1])
    reader = next((node for node in readers if node.op_type.startswith(("DequantizeLinear", "QLinear", "QGemm"))), None)
    return Grid() if reader is None else _grid(graph, reader)


def _grid_of_output(graph: Any, name: str) -> Grid:
    """Of what quantizes an output."""
    writer = next((node for node in graph.node if name in node.output and node.op_type == "QuantizeLinear"), None)
    return Grid() if writer is None else _grid(graph, writer)


def _grid(graph: Any, node: Any) -> Grid:
    """The constants behind the first input of a node; a scale of 0 where they are no single numbers."""
    onnx = onnx_library()
    known = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    known |= {one.output[0]: onnx.numpy_helper.to_array(one.attribute[0].t) for one in graph.node if one.op_type == "Constant"}
    scale, *zero_point = (known.get(name) for name in node.input[1:3])
    if scale is None or scale.size != 1:
        return Grid()
    return Grid(float(scale), 0 if not zero_point or zero_point[0] is None else int(zero_point[0]))


def _open_tflite(path: Path, threads: int) -> _Opened:
    """A file in LiteRT; layers are its operators."""
    from ai_edge_litert import interpreter as litert

    interpreter = litert.Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    sources = [_tflite_end(one) for one in interpreter.get_input_details()]
    targets = [_tflite_end(one) for one in interpreter.get_output_details()]
    layers = list(layer_operators(unpack(path.read_bytes())))

    def call_of(source: End, target: End) -> Callable[[Array], Array]:
        of_source, of_target = (
            next(one["index"] for one in ends if one["name"] == end.name)
            for ends, end in ((interpreter.get_input_details(), source), (interpreter.get_output_details(), target))
        )

        def call(array: Array) -> Array:
            if array.shape != tuple(interpreter.get_input_details()[0]["shape"]):
                interpreter.resize_tensor_input(of_source, array.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(of_source, array)
            interpreter.invoke()
            return np.asarray(interpreter.get_tensor(of_target))

        return call

    return _Opened(sources, targets, True, (len(layers), sum(is_integer for _, is_integer in layers)), call_of)


def _tflite_end(details: Any) -> End:
    scale, zero_point = details["quantization"]
    shape = tuple(int(size) for size in details["shape_signature"])
    return End(details["name"], shape, np.dtype(details["dtype"]).name, Grid(float(scale), int(zero_point)))


def _codes(images: Array, source: End) -> Array:
    """Images as a file takes them."""
    if not source.dtype.endswith("int8"):
        return images.astype(source.dtype)
    bounds = np.iinfo(source.dtype)
    return np.asarray(np.clip(_unclipped(images, source), bounds.min, bounds.max).astype(source.dtype))


def _unclipped(images: Array, source: End) -> Array:
    """Codes of images, as floats of any size."""
    return np.asarray(np.rint(images / np.float32(source.grid.scale)) + source.grid.zero_point)


def _values(logits: Array, target: End) -> Array:
    """Logits as float32, of codes or not."""
    values = logits.astype(np.float32)
    return (values - target.grid.zero_point) * np.float32(target.grid.scale) if target.dtype.endswith("int8") else values


def _filled(part: Array, size: int) -> Array:
    """A batch of the size that is wanted."""
    return part if len(part) == size else np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
