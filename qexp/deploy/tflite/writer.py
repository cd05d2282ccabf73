"""TFLite files, tensor by tensor and operator by operator; the only file that knows how their schema spells them.

A .tflite file is a flatbuffer. Its tables are Python classes of `ai-edge-litert`, the package that also runs it, so that the
schema is the runtime's own. Rejected: the package `tflite`, which has the same classes, as one more dependency that follows
another release; a converter (`ai-edge-torch`, TensorFlow), which would choose scales of its own and bring a second framework.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QParams
from qexp.deploy.int8_files import signed
from qexp.deploy.onnx.writer import INPUT, OUTPUT, code_type
from qexp.deploy.tflite.versions import OPTIONS, version_of

FLOAT32, INT32, INT64, INT16, INT8 = "FLOAT32", "INT32", "INT64", "INT16", "INT8"
TFLITE = "TFLite"  # in messages
ABOUT, POINTS = "qexp.about", "qexp.points"  # metadata: what the file is, and where the codes of its activation points are
SIGNATURE = "serving_default"  # TensorFlow's name for a file's only signature
_SCHEMA_VERSION = 3
_TIE = 1e-3  # of a step: what float32 leaves of it, and more
_DTYPES = {"float32": FLOAT32, "int32": INT32, "int64": INT64, "int16": INT16, "int8": INT8}


def schema_library() -> ModuleType:
    """The classes of TFLite's schema, of the package `ai-edge-litert`, which the extra `deploy` brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        allowed, remedy = "an environment where the package ai-edge-litert is installed", "pip install 'qexp[deploy]'"
        raise UserError("export.runtime", "litert", allowed=allowed, remedy=f"Install it with: {remedy}") from None
    return schema_py_generated


@dataclass(frozen=True, eq=False)
class CodeGrid:
    """Codes in a file: value = (code - zero_point) * scale, per tensor.

    Args:
        qparams: the grid with the codes of the file.
        dtype: INT8, or INT16, whose zero point is 0.
        offset: what was added to qexp's codes.
    """

    qparams: QParams
    dtype: str
    offset: int = 0

    @property
    def scale(self) -> float:
        """The step."""
        return float(self.qparams.scale)

    @property
    def zero_point(self) -> int:
        """The code of zero."""
        return int(self.qparams.zero_point)

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest code of the type, at which operators saturate."""
        return (-128, 127) if self.dtype == INT8 else (-32768, 32767)

    def same(self, other: CodeGrid | None) -> bool:
        """True where the codes of two grids stand for the same values."""
        if other is None:
            return False
        return (self.scale, self.zero_point, self.dtype) == (other.scale, other.zero_point, other.dtype)

    def within(self, low: float | None, high: float | None) -> tuple[bool, bool]:
        """Whether values clamped from low to high keep within the grid's lower and its upper end, inside those of the type.

        Args:
            low: lower end of the clamp; None for none.
            high: upper end; None for none.
        """
        qparams = self.qparams
        above = low is not None and low / self.scale + self.zero_point > qparams.quant_min - 0.5
        return above, high is not None and high / self.scale + self.zero_point < qparams.quant_max + 0.5

    def ties(self, end: float) -> bool:
        """True for a value halfway between two codes of the grid, which a runtime that clamps there may round otherwise."""
        steps, qparams = end / self.scale, self.qparams
        inside = qparams.quant_min - 0.5 < steps + self.zero_point < qparams.quant_max + 0.5
        return inside and abs(abs(steps) % 1 - 0.5) < _TIE


def activation_grid(name: str, qparams: QParams) -> CodeGrid:
    """The grid of an activation point with signed codes, which TFLite's kernels take: unsigned ones of 8 bits move by 128.

    Args:
        name: of the point, for the message.
        qparams: its grid, per tensor.

    Raises:
        UserError: a zero point that is no code, or codes of more than 8 bits that are not symmetric about 0.
    """
    zero_point = float(qparams.zero_point)
    if zero_point != round(zero_point) or not qparams.quant_min <= zero_point <= qparams.quant_max:
        raise UserError(f"{name}.zero_point", zero_point, allowed="one of the codes, as in TFLite")
    dtype = code_type(qparams)
    if dtype in ("INT16", "UINT16") and (dtype == "UINT16" or zero_point):
        remedy = "Quantize activations of more than 8 bits with quant.activation.scheme=symmetric."
        raise UserError(f"{name}", f"{dtype} codes, zero point {zero_point:g}", allowed="INT16 with zero point 0", remedy=remedy)
    moved, offset = signed(qparams)
    return CodeGrid(moved, INT8 if offset else dtype, offset)


class TfliteWriter:
    """Collects tensors and operators of one subgraph."""

    def __init__(self) -> None:
        self.schema = schema_library()
        self.buffers: list[Any] = [self.schema.BufferT()]  # the first is empty, as the format wants
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self._codes: dict[tuple[int, int], int] = {}
        self._op_codes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._taken: dict[str, int] = {}

    def _name(self, wanted: str) -> str:
        number = self._taken.get(wanted, 0)
        self._taken[wanted] = number + 1
        return self._name(f"{wanted}_{number}") if number else wanted

    def _quantization(self, scale: Tensor, zero_point: Tensor, axis: int) -> Any:
        parameters = self.schema.QuantizationParametersT()
        scales = scale.reshape(-1).float()
        parameters.scale = scales.numpy()
        parameters.zeroPoint = zero_point.reshape(-1).expand(len(scales)).to(torch.int64).numpy()
        parameters.quantizedDimension = axis
        return parameters

    def _tensor(self, name: str, shape: Sequence[int], dtype: str, buffer: int, quantization: Any = None) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.type = self._name(name), list(shape), getattr(self.schema.TensorType, dtype)
        tensor.buffer, tensor.quantization, tensor.hasRank = buffer, quantization, True
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _buffer(self, data: bytes | np.ndarray[Any, Any]) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, dtype=np.uint8)
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def value(self, name: str, shape: Sequence[int], grid: CodeGrid | None = None, *, batch: int | None = 0) -> int:
        """A tensor that an operator computes; its number.

        Args:
            name: of the tensor, made unique.
            shape: in the file, of one image.
            grid: of its codes; None of float32.
            batch: the dimension that counts images, of any number.
        """
        parameters = None if grid is None else self._quantization(grid.qparams.scale, grid.qparams.zero_point, 0)
        number = self._tensor(name, shape, FLOAT32 if grid is None else grid.dtype, 0, parameters)
        if batch is not None:
            self.tensors[number].shapeSignature = [-1 if axis == batch else size for axis, size in enumerate(shape)]
        return number

    def constant(self, name: str, values: Tensor, *, scale: Tensor | None = None, axis: int = 0, zero_point: int = 0) -> int:
        """A tensor that the file holds; small ones that are equal are one.

        Args:
            name: of the tensor, made unique.
            values: of a type of `_DTYPES`.
            scale: of codes, 0-d or [channels].
            axis: of the channels.
            zero_point: of codes, one for all.
        """
        array = np.ascontiguousarray(values.detach().cpu().numpy())
        key = (str(array.dtype), array.shape, array.tobytes())
        if scale is None and array.size <= 64 and key in self._constants:
            return self._constants[key]
        parameters = None if scale is None else self._quantization(scale.cpu(), torch.tensor(zero_point), axis)
        number = self._tensor(name, array.shape, _DTYPES[str(array.dtype)], self._buffer(array.tobytes()), parameters)
        if scale is None:
            self._constants[key] = number
        return number

    def operator(self, kind: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        """Append an operator with one result; the number of that.

        Args:
            kind: TFLite's name, of `versions.OPTIONS`.
            inputs: numbers of tensors; -1 for one that is left out.
            output: number of the tensor.
            **options: as the schema's table has them.
        """
        table, tensors = OPTIONS[kind], [None if number < 0 else self.tensors[number] for number in (*inputs, output)]
        version = version_of(kind, self.schema.TensorType, tensors, options)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._op_code(kind, version), list(inputs), [output]
        if table:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            operator.builtinOptions = getattr(self.schema, f"{table}T")()
            for key, value in options.items():
                assert hasattr(operator.builtinOptions, key), (kind, key)
                setattr(operator.builtinOptions, key, value)
        self.operators.append(operator)
        return output

    def _op_code(self, kind: str, version: int) -> int:
        code = getattr(self.schema.BuiltinOperator, kind)
        if (code, version) not in self._codes:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
            self._op_codes.append(entry)
            self._codes[code, version] = len(self._op_codes) - 1
        return self._codes[code, version]

    def _signature(self, source: int, result: int) -> Any:
        """The name by which LiteRT's signature runners call the network, and tools that read signatures alone."""
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs, signature.outputs = [self.schema.TensorMapT()], [self.schema.TensorMapT()]
        for (place,), name, number in ((signature.inputs, INPUT, source), (signature.outputs, OUTPUT, result)):
            place.name, place.tensorIndex = name, number
        return signature

    def file(self, source: int, result: int, about: Mapping[str, object], points: Mapping[str, Sequence[object]]) -> bytes:
        """The bytes of the file.

        Args:
            source: number of the tensor of images.
            result: number of the tensor of logits.
            about: for the file's reader, plain values.
            points: activation point -> (name of its tensor, what was added to qexp's codes, `first`, `last`, or C, H, W of what
                was flattened pixels first).
        """
        schema = self.schema
        self.tensors[source].name, self.tensors[result].name = INPUT, OUTPUT
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators, subgraph.name = self.tensors, self.operators, "main"
        subgraph.inputs, subgraph.outputs = [source], [result]
        model = schema.ModelT()
        model.version, model.description, model.subgraphs = _SCHEMA_VERSION, "qexp", [subgraph]
        model.operatorCodes, model.metadata = self._op_codes, []
        model.signatureDefs = [self._signature(source, result)]
        for name, content in ((ABOUT, {key: str(value) for key, value in about.items()}), (POINTS, dict(points))):
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, self._buffer(json.dumps(content).encode())
            model.metadata.append(entry)
        model.buffers = self.buffers
        return pack(model)


def pack(model: Any) -> bytes:
    """The bytes of a `ModelT`."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def unpack(content: bytes) -> Any:
    """A file's `ModelT`."""
    return schema_library().ModelT.InitFromPackedBuf(bytearray(content), 0)


def text(name: bytes | str) -> str:
    """A name as the schema's classes give it, which are bytes when they were read."""
    return name.decode() if isinstance(name, bytes) else name


def metadata(model: Any, name: str) -> Any:
    """What a file says under a name; an empty mapping where it says nothing."""
    for entry in model.metadata or ():
        if text(entry.name) == name:
            return json.loads(bytes(model.buffers[entry.buffer].data))
    return {}
