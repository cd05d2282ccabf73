"""One operator of a network on its way into a TFLite file: values with their layout, and what is done to them on the way.

TFLite's operators take images as [N, H, W, C], torch's as [N, C, H, W]. A value knows how it lies in the file, and is transposed
where an operator wants it otherwise; in a CNN that is never, since all that is moved between convolutions is written for channels
that lie last. What is flattened before a linear layer stays in its order, pixels first, and the columns of the weight are moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from qexp.base.types import QParams
from qexp.deploy.graph_call import Constant, GraphCall
from qexp.deploy.tflite.writer import INT16, CodeGrid, TfliteWriter
from qexp.deploy.weight_codes import WeightCodes
from qexp.quant.affine import quantize_affine

Clamp = tuple[float, float | None]  # lower end, and upper end or None
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_FUSED: dict[Clamp | None, int] = {None: 0, (0.0, None): 1, (-1.0, 1.0): 2, (0.0, 6.0): 3}  # the schema's ActivationFunctionType


@dataclass(frozen=True, eq=False)
class Value:
    """An activation in the file.

    Args:
        tensor: its number.
        shape: torch's, on the example.
        grid: of its codes; None of float32.
        last: its channels lie last in the file, [N, H, W, C].
        pads: zeros that its readers, convolutions all, put before and then behind each of its spatial dimensions.
        pixels: of what was flattened from [N, C, H, W] as it lies in the file, C, H and W: the order is H, W, C.
        final: it is on the grid of its only reader, and what clamps it on the way there is done.
    """

    tensor: int
    shape: tuple[int, ...]
    grid: CodeGrid | None = None
    last: bool = False
    pads: tuple[int, ...] = ()
    pixels: tuple[int, int, int] | None = None
    final: bool = False


@dataclass(frozen=True, eq=False)
class Target:
    """Where a result goes: the codes that its only reader makes of it.

    Args:
        grid: of the codes.
        clamp: before them.
    """

    grid: CodeGrid
    clamp: Clamp | None = None

    @property
    def fused(self) -> int | None:
        """The clamp as an operator does it to its own result; None where none can, or where an end's code may be another."""
        if any(end is not None and self.grid.ties(end) for end in self.clamp or ()):
            return None
        return _FUSED.get(self.clamp)


def file_shape(shape: Sequence[int], last: bool) -> list[int]:
    """The shape of one image's value in the file.

    Args:
        shape: torch's, on the example.
        last: channels lie last.
    """
    order = TO_LAST if last else range(len(shape))
    return [1 if axis == 0 else shape[axis] for axis in order]


@dataclass(frozen=True, eq=False)
class TfliteContext:
    """What all nodes of one file share, and what changes a value's form.

    Args:
        writer: of the file.
        weights: state-dict name -> codes.
        stored: state-dict name -> type in the file.
        notes: for the user.
        forms: values in another form, already written.
        constants: weights that are written, by name and form.
    """

    writer: TfliteWriter
    weights: Mapping[str, WeightCodes]
    stored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    forms: dict[tuple[object, ...], Value] = field(default_factory=dict)
    constants: dict[tuple[object, ...], int] = field(default_factory=dict)

    def emit(
        self,
        name: str,
        kind: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        grid: CodeGrid | None = None,
        last: bool = False,
        **options: Any,
    ) -> Value:
        """Append an operator; its result.

        Args:
            name: of the result.
            kind: TFLite's name of the operator.
            inputs: numbers of tensors.
            shape: of the result, torch's, on the example.
            grid: of its codes; None of float32.
            last: its channels lie last.
            **options: of the operator.
        """
        number = self.writer.value(name, file_shape(shape, last), grid)
        self.writer.operator(kind, inputs, number, **options)
        return Value(number, tuple(shape), grid, last)

    def name_of(self, value: Value) -> str:
        """The name of a value's tensor."""
        return str(self.writer.tensors[value.tensor].name)

    def integers(self, *values: int) -> int:
        """A constant of int32, [n]."""
        return self.writer.constant("constant", torch.tensor(values, dtype=torch.int32))

    def _form(self, value: Value, key: tuple[object, ...], kind: str, inputs: Sequence[int], **form: Any) -> Value:
        """A value in another form, written once."""
        if (value.tensor, *key) not in self.forms:
            shape = form.pop("shape", value.shape)
            emitted = self.emit(f"{self.name_of(value)}.{key[0]}", kind, [value.tensor, *inputs], shape, **form)
            self.forms[value.tensor, *key] = replace(emitted, pads=value.pads, pixels=value.pixels)
        return self.forms[value.tensor, *key]

    def floats(self, value: Value) -> Value:
        """DEQUANTIZE of codes; a float value as it is."""
        return value if value.grid is None else self._form(value, ("values",), "DEQUANTIZE", (), last=value.last)

    def on_grid(self, value: Value, grid: CodeGrid) -> Value:
        """QUANTIZE to a grid; as it is where it is on it already.

        Codes of another step become floats first: of codes to codes XNNPACK's QUANTIZE is a step off in 2 to 5 % of them, while
        DEQUANTIZE and QUANTIZE round as the simulation does.
        """
        if grid.same(value.grid):
            return replace(value, grid=grid)
        if value.grid is not None and value.grid.scale != grid.scale:
            value = self.floats(value)
        key = ("codes", grid.scale, grid.zero_point, grid.dtype)
        return replace(self._form(value, key, "QUANTIZE", (), grid=grid, last=value.last), grid=grid)

    def wide(self, value: Value) -> Value:
        """8-bit codes as 16-bit ones of the same step and values, whose zero point is 0."""
        assert value.grid is not None
        return value if value.grid.dtype == INT16 else self.on_grid(value, wide_grid(value.grid.qparams.scale))

    def channels_last(self, value: Value) -> Value:
        """A value of four dimensions as [N, H, W, C]."""
        if value.last or len(value.shape) != 4:
            return value
        return self._form(value, ("last",), "TRANSPOSE", (self.integers(*TO_LAST),), grid=value.grid, last=True)

    def plain(self, value: Value) -> Value:
        """A value with its dimensions in torch's order."""
        if value.pixels is not None:
            c, h, w = value.pixels
            shape, grid = (value.shape[0], c, h, w), value.grid
            image = self._form(value, ("pixels",), "RESHAPE", (self.integers(-1, h, w, c),), shape=shape, grid=grid, last=True)
            first = self.plain(replace(image, pixels=None))
            return self._form(first, ("flat",), "RESHAPE", (self.integers(-1, c * h * w),), shape=value.shape, grid=grid)
        if not value.last:
            return value
        return self._form(value, ("first",), "TRANSPOSE", (self.integers(*TO_FIRST),), grid=value.grid)

    def clamped(self, value: Value, low: float | None, high: float | None, *, codes: bool = False) -> Value:
        """A value clamped; codes by the codes of the ends, which is exact.

        Args:
            value: codes or floats.
            low: lower end; None for none.
            high: upper end; None for none.
            codes: the ends are codes of its grid already.
        """
        for kind, end in (("MAXIMUM", low), ("MINIMUM", high)):
            if end is None:
                continue
            name = f"{self.name_of(value)}.{'least' if kind == 'MAXIMUM' else 'most'}"
            if value.grid is None:
                other = self.writer.constant(f"{name}.end", torch.tensor([end]))
            else:
                grid = value.grid
                code = torch.tensor(end) if codes else quantize_affine(torch.tensor(end), grid.qparams, arithmetic="divide")
                dtype = torch.int16 if grid.dtype == INT16 else torch.int8
                values = code.reshape(1).to(dtype)
                other = self.writer.constant(f"{name}.end", values, scale=grid.qparams.scale, zero_point=grid.zero_point)
            emitted = self.emit(name, kind, [value.tensor, other], value.shape, grid=value.grid, last=value.last)
            value = replace(value, tensor=emitted.tensor)
        return value

    def limited(self, value: Value, *, low: bool = True, high: bool = True) -> Value:
        """Codes within the ends of their grid, where the type goes on beyond them and an end was not kept yet.

        Args:
            value: codes.
            low: the lower end was not kept yet.
            high: the upper end was not.
        """
        assert value.grid is not None
        ends, qparams = value.grid.ends, value.grid.qparams
        least = float(qparams.quant_min) if low and qparams.quant_min > ends[0] else None
        most = float(qparams.quant_max) if high and qparams.quant_max < ends[1] else None
        return self.clamped(value, least, most, codes=True)


def wide_grid(scale: Tensor) -> CodeGrid:
    """INT16 codes of a step, with zero point 0."""
    return CodeGrid(QParams(scale.detach().float().reshape(()), torch.tensor(0.0), -32768, 32767), INT16)


@dataclass(frozen=True, eq=False)
class TfliteNode(GraphCall):
    """A call of a module, function or method, on its way into a TFLite file.

    Args:
        context: shared by all nodes of the file.
        target: where its result goes; None where that is no codes.
    """

    WRITTEN: ClassVar[str] = "an operator that qexp writes to TFLite (qexp/deploy/tflite/operators.py lists them)"

    context: TfliteContext = field(kw_only=True)
    target: Target | None = field(kw_only=True, default=None)

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

    def emit(self, kind: str, *inputs: int, grid: CodeGrid | None = None, last: bool = False, **options: Any) -> Value:
        """Append an operator with the node's name and shape."""
        return self.context.emit(self.name, kind, inputs, self.shape, grid=grid, last=last, **options)

    def each_alone(self, kind: str, x: Value, *others: int, **options: Any) -> Value:
        """Append an operator that takes each value of x by itself; the result lies as x does, also where that was flattened.

        Args:
            kind: TFLite's name.
            x: its first operand.
            *others: numbers of further operands, one for all values.
            **options: of the operator.
        """
        return replace(self.emit(kind, x.tensor, *others, last=x.last, **options), pixels=x.pixels)

    def finished(self, value: Value) -> Value:
        """A result on the target's grid, after an operator that fused the clamp where it can: the rest of the clamp, and ends."""
        assert self.target is not None and value.grid is not None
        low, high = self.target.clamp or (None, None)
        if self.target.fused is None:
            value, low, high = self.context.clamped(value, low, high), None, None
        kept = self.target.grid.within(low, high)
        return replace(self.context.limited(value, low=not kept[0], high=not kept[1]), final=True)

    def constant(self, value: Constant | float, *, last: bool = False) -> int:
        """Any other operand of elementwise arithmetic as float32.

        Args:
            value: a tensor made of parameters, or a number.
            last: as it meets values of four dimensions whose channels lie last.
        """
        if not isinstance(value, Constant):
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.refuse(f"it takes {type(value).__name__}")
            return self.context.writer.constant("constant", torch.tensor([float(value)]))
        tensor = value.tensor.float()
        if last:
            tensor = tensor.reshape(*[1] * (4 - tensor.dim()), *tensor.shape).permute(TO_LAST)
        self.context.stored[value.path or f"{self.name}.constant"] = "FLOAT"
        return self.context.writer.constant(value.path or f"{self.name}.constant", tensor)
