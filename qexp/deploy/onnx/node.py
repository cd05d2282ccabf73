"""One operator of a network on its way into a file: what it reads, what it gives, and how it writes nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.text import Note
from qexp.deploy.float8 import Float8Weight
from qexp.deploy.graph_call import Constant, GraphCall
from qexp.deploy.grouped import GroupedWeight
from qexp.deploy.in_float import InFloat
from qexp.deploy.onnx.writer import Grid, OnnxWriter, code_type
from qexp.deploy.weight_codes import WeightCodes, accumulator_scale, bias_codes
from qexp.quant.affine import quantize_affine


@dataclass(frozen=True)
class Dynamic:
    """Codes whose grid is each batch's own.

    Args:
        codes: name of the UINT8 codes.
        scale: name of their scale.
        zero_point: name of their zero point.
    """

    codes: str
    scale: str
    zero_point: str


@dataclass(frozen=True, eq=False)
class Value:
    """An activation in the file.

    Args:
        name: of the tensor.
        shape: on the example.
        grid: whose dequantized codes it holds; None for any float.
        dynamic: the codes that it was dequantized from, where they have each batch's grid.
        pads: zeros that its readers, convolutions all, put before and then behind each of its spatial dimensions.
    """

    name: str
    shape: tuple[int, ...]
    grid: Grid | None = None
    dynamic: Dynamic | None = None
    pads: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class ExportContext:
    """What all nodes of one export share.

    Args:
        writer: of the file.
        weights: state-dict name -> codes.
        pack_int4: store codes of 4 bits and less in half bytes.
        unsigned: activations have codes from 0 on.
        in_float: state-dict name -> numbers or codes of weights that runtimes compute with in float.
        grids: codes and grids of matrices for integer products, already written.
        stored: state-dict name -> type in the file.
        biases: state-dict name -> float32 values of its codes.
        notes: for the user.
    """

    writer: OnnxWriter
    weights: Mapping[str, WeightCodes]
    pack_int4: bool
    unsigned: bool
    in_float: Mapping[str, InFloat] = field(default_factory=dict)
    grids: dict[tuple[str, bool], tuple[str, Grid]] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class OnnxNode(GraphCall):
    """A call of a module, function or method, on its way into an ONNX file.

    Args:
        context: shared by all nodes of the export.
    """

    WRITTEN: ClassVar[str] = "an operator that qexp writes to ONNX (qexp/deploy/onnx/operators.py lists them)"

    context: ExportContext = field(kw_only=True)

    def activation(self, position: int = 0, name: str = "input") -> Value:
        """An operand that depends on the images.

        Args:
            position: of the argument.
            name: of the argument.
        """
        value = self.argument(position, name)
        if not isinstance(value, Value):
            self.refuse("its operand is no tensor that depends on the images")
        return value

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one result."""
        return self.context.writer.node(operator, inputs, self.name, **attributes)[0]

    def integers(self, *values: int) -> str:
        """A constant of int64."""
        return self.context.writer.constant(values)

    def index(self, value: int) -> str:
        """A constant of int64, 0-d."""
        return self.context.writer.constant(value)

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.context.writer.constant(float(value))

    def operand(self, value: Value | Constant | float) -> str:
        """The tensor's name of any operand of elementwise arithmetic; constants are written as float32."""
        if isinstance(value, Value):
            return value.name
        if isinstance(value, Constant):
            return self.context.writer.tensor(value.path or f"{self.name}.constant", value.tensor.float())
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"it takes {type(value).__name__}")
        return self.number(value)

    def weight(self, constant: Constant, *, transpose: bool = False) -> tuple[str, Grid | None]:
        """A weight as float32, as DequantizeLinear of its codes, its groups' or its numbers of 8 bits where they are known.

        Args:
            constant: as the layer holds it.
            transpose: write the transposed matrix.
        """
        context, writer = self.context, self.context.writer
        coded, path = context.weights.get(constant.path), constant.path or f"{self.name}.weight"
        tensor = constant.tensor.float()
        if path in context.in_float:
            other = context.in_float[path]
            if isinstance(other, Float8Weight):
                return self._write_float8(path, other, transpose), None
            return self._write_groups(path, other, transpose), None
        if coded is None:
            context.stored[path] = "FLOAT"
            return writer.tensor(path, tensor.t() if transpose else tensor), None
        note = Note(path, "written once for each layer that reads it: ONNX Runtime does not load shared codes")
        if path in context.stored and note not in context.notes:
            context.notes.append(note)
        return self._write_codes(path, coded, transpose)

    def matrix(self, constant: Constant) -> tuple[str, Grid] | None:
        """The codes, 8 bits, of a transposed matrix for an integer product, with their grid; None where there are none such."""
        weight, key = self.context.weights.get(constant.path), (f"{constant.path}.codes", True)
        if weight is None or code_type(weight.qparams) not in ("INT8", "UINT8"):
            return None
        if key not in self.context.grids:
            self.context.grids[key] = self._write_grid(constant.path, weight, transpose=True, packed=False)
        return self.context.grids[key]

    def _write_codes(self, path: str, weight: WeightCodes, transpose: bool) -> tuple[str, Grid]:
        """Codes, scales and DequantizeLinear of a weight."""
        codes, grid = self._write_grid(path, weight, transpose=transpose, packed=self.context.pack_int4)
        return self.context.writer.dequantize(codes, grid, path), grid

    def _write_float8(self, path: str, weight: Float8Weight, transpose: bool) -> str:
        """Numbers, scales and DequantizeLinear of a weight in a floating-point format of 8 bits."""
        writer, numbers, axis = self.context.writer, weight.numbers, weight.axis
        if transpose:
            numbers, axis = numbers.t(), None if axis is None else 1 - axis
        names = [writer.float8(f"{path}.codes", numbers, weight.dtype), writer.tensor(f"{path}.scale", weight.scale)]
        names.append(writer.float8(f"{path}.zero_point", torch.zeros_like(weight.scale), weight.dtype))
        self.context.stored[path] = weight.dtype
        return writer.node("DequantizeLinear", names, path, **({} if axis is None else {"axis": axis}))[0]

    def _write_groups(self, path: str, weight: GroupedWeight, transpose: bool) -> str:
        """Codes in blocks, their scales and DequantizeLinear, cut to a channel's elements and brought to the weight's shape."""
        writer, layout, blocks = self.context.writer, weight.layout, weight.blocks
        grid = writer.grid(path, weight.qparams, packed=self.context.pack_int4)
        names = [writer.codes(f"{path}.codes", blocks, grid.dtype), grid.scale, grid.zero_point]
        result = writer.node("DequantizeLinear", names, path, axis=1, block_size=layout.group)[0]
        if blocks.shape[1] > layout.size:
            result = self.emit("Slice", result, self.integers(0), self.integers(layout.size), self.integers(1))
        order = layout.order or tuple(range(len(layout.shape)))
        result = self.emit("Reshape", result, self.integers(*(layout.shape[dim] for dim in order)))
        back = sorted(range(len(order)), key=order.__getitem__)
        if transpose:
            back.reverse()
        self.context.stored[path] = grid.dtype
        return result if back == sorted(back) else self.emit("Transpose", result, perm=back)

    def _write_grid(self, path: str, weight: WeightCodes, *, transpose: bool, packed: bool) -> tuple[str, Grid]:
        """Codes and scales of a weight."""
        codes, qparams = weight.codes, weight.qparams
        if transpose:
            axis = None if qparams.axis is None else 1 - qparams.axis
            codes, qparams = codes.t(), replace(qparams, axis=axis)
        if qparams.axis is not None and bool((qparams.zero_point != qparams.zero_point.flatten()[0]).any()):
            remedy = "Quantize weights per channel with a symmetric grid: quant=symmetric_restricted."
            raise UserError(
                path, "a zero point for each channel", allowed="one for all, as integer kernels have it", remedy=remedy
            )
        writer = self.context.writer
        grid = writer.grid(path, qparams, packed=packed)
        self.context.stored[path] = grid.dtype
        return writer.codes(f"{path}.codes", codes, grid.dtype), grid

    def bias(self, constant: Constant, x: Grid | None, weight: Grid | None, *, groups: int = 1) -> str | None:
        """A layer's bias: int32 codes of s_x * s_w where both are integers per tensor and channel, else float32.

        None where its codes would leave int32, so that it has to be added behind the layer.

        Args:
            constant: the bias.
            x: grid of the layer's input; None where that is float.
            weight: grid of its weight; None where that is float.
            groups: of a transposed convolution, whose groups share the scales of their channels.
        """
        writer, path = self.context.writer, constant.path or f"{self.name}.bias"
        # TensorRT, which alone wants signed activations, refuses INT32: "only activation types allowed" (onnx-tensorrt #850).
        if x is None or weight is None or x.qparams.axis is not None or not self.context.unsigned:
            self.context.stored[path] = "FLOAT"
            return writer.tensor(path, constant.tensor.float())
        scale = accumulator_scale(x.qparams, weight.qparams, groups)
        codes = bias_codes(constant.tensor, scale)
        if codes is None:
            self.context.stored[path] = "FLOAT"
            self.context.notes.append(Note(path, "added in float behind the layer, beyond int32 at the scale of its accumulator"))
            return None
        axis = {} if scale.dim() == 0 else {"axis": 0}
        names = [writer.tensor(f"{path}.codes", codes), writer.tensor(f"{path}.scale", scale)]
        self.context.stored[path], self.context.biases[path] = "INT32", codes.float() * scale
        return writer.node("DequantizeLinear", names, path, **axis)[0]


def clamps_nothing(grid: Grid, low: float | None, high: float | None) -> bool:
    """True where clamping to [low, high] changes no code of the grid: its ends already stand for all beyond them.

    Args:
        grid: of the result.
        low: lower end; None for none.
        high: upper end; None for none.
    """
    ends = [(low, grid.qparams.quant_min), (high, grid.qparams.quant_max)]
    return all(
        end is None
        or bool((quantize_affine(torch.full_like(grid.qparams.scale, end), grid.qparams, arithmetic="divide") == code).all())
        for end, code in ends
    )


def kept_grid(onnx_node: OnnxNode) -> Grid | None:
    """The one grid, per tensor, that all operands of a call are on; None where they are not.

    Args:
        onnx_node: the call.
    """
    operands = onnx_node.args[0] if isinstance(onnx_node.args[0], list | tuple) else onnx_node.args[:1]
    grids = {getattr(operand, "grid", None) for operand in operands}
    grid = grids.pop() if len(grids) == 1 else None
    return grid if grid is not None and grid.qparams.axis is None else None
