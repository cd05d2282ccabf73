"""ONNX files, tensor by tensor and node by node; the only file that knows how `onnx` spells them.

Opset 21 (IR 10), whatever a network needs: the first with 4 and 16 bit codes in QuantizeLinear and DequantizeLinear, and read by
ONNX Runtime from 1.18 on. One version means that a file is the same wherever it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QParams
from qexp.tracking import environment

OPSET, IR_VERSION = 21, 10
INPUT, OUTPUT, BATCH = "images", "logits", "N"
FLOAT = 1  # TensorProto.FLOAT
# Smallest and largest code of a type, narrow ones first; 4 bits are for weights, since runtimes compute with 8 and 16.
_TYPES = {
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "UINT8": (0, 255),
    "INT8": (-128, 127),
    "UINT16": (0, 65535),
    "INT16": (-32768, 32767),
}
_FLOAT8 = {"FLOAT8E4M3FN": torch.float8_e4m3fn, "FLOAT8E5M2": torch.float8_e5m2}


def onnx_library() -> ModuleType:
    """The `onnx` package, which the extra `deploy` brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        remedy = "Install it with: pip install 'qexp[deploy]'"
        raise UserError("export", "onnx", allowed="an environment where the package onnx is installed", remedy=remedy) from None
    return onnx


@dataclass(frozen=True, eq=False)
class Grid:
    """Quantization parameters in a file.

    Args:
        scale: name of the initializer that holds it.
        zero_point: name of the initializer that holds it.
        qparams: what they hold.
        dtype: of the codes, ONNX's name (`INT8`).
        offset: what was added to qexp's codes and zero point.
    """

    scale: str
    zero_point: str
    qparams: QParams
    dtype: str
    offset: int = 0

    @property
    def is_narrow(self) -> bool:
        """True where the codes stop short of their type's, at which QuantizeLinear saturates."""
        return _TYPES[self.dtype] != (self.qparams.quant_min, self.qparams.quant_max)


def code_type(qparams: QParams, *, packed: bool = False) -> str:
    """The narrowest type that holds all codes; unsigned where none is negative.

    Args:
        qparams: whose codes.
        packed: take 4 bits where they suffice.

    >>> code_type(QParams(torch.tensor(1.0), torch.tensor(0.0), -127, 127))
    'INT8'
    """
    for name, (low, high) in _TYPES.items():
        if low <= qparams.quant_min and qparams.quant_max <= high and (packed or "4" not in name):
            return name
    raise AssertionError(f"codes {qparams.quant_min} to {qparams.quant_max}")


def moved(qparams: QParams, *, packed: bool = False, unsigned: bool = False) -> tuple[QParams, str, int]:
    """A grid with the codes of a file, their type, and what was added to qexp's.

    Args:
        qparams: of the grid.
        packed: take 4 bits where they suffice.
        unsigned: codes from 0 on, the same grid moved.

    >>> moved(QParams(torch.tensor(1.0), torch.tensor(-3.0), -128, 127), unsigned=True)[0].zero_point
    tensor(125.)
    """
    dtype = code_type(qparams, packed=packed)
    if not unsigned or dtype.startswith("U"):
        return qparams, dtype, 0
    offset = -_TYPES[dtype][0]
    limits = qparams.quant_min + offset, qparams.quant_max + offset
    return QParams(qparams.scale, qparams.zero_point + offset, *limits, qparams.axis), f"U{dtype}", offset


class OnnxWriter:
    """Collects nodes and initializers; every name is given once, a second one gets `_1`."""

    def __init__(self) -> None:
        self.onnx = onnx_library()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._taken = {INPUT: 1, OUTPUT: 1}
        self._constants: dict[tuple[str, bytes], str] = {}

    def name(self, wanted: str) -> str:
        """A name that nothing else has."""
        number = self._taken.get(wanted, 0)
        self._taken[wanted] = number + 1
        return self.name(f"{wanted}_{number}") if number else wanted

    def node(self, operator: str, inputs: Sequence[str], name: str, num_outputs: int = 1, **attributes: Any) -> list[str]:
        """Append a node named after the module or function that it comes from; the names of its results.

        Args:
            operator: ONNX's name.
            inputs: names of tensors.
            name: of the module or function.
            num_outputs: number of results.
            **attributes: of the operator.
        """
        name = self.name(name)
        outputs = [name] if num_outputs == 1 else [self.name(f"{name}.{number}") for number in range(num_outputs)]
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return outputs

    def tensor(self, name: str, values: Tensor) -> str:
        """An initializer of the tensor's dtype."""
        name = self.name(name)
        self.initializers.append(self.onnx.numpy_helper.from_array(values.detach().cpu().contiguous().numpy(), name))
        return name

    def constant(self, values: Sequence[int] | int | float) -> str:
        """A small constant, int64 [n] or 0-d, or float32 0-d; equal ones are one."""
        value = torch.tensor(values, dtype=torch.float32 if isinstance(values, float) else torch.int64)
        key = (f"{value.dtype} {value.dim()}", value.numpy().tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor("constant", value)
        return self._constants[key]

    def grid(self, name: str, qparams: QParams, *, packed: bool = False, unsigned: bool = False) -> Grid:
        """Scale and zero point as initializers `name.scale`, `name.zero_point`.

        Args:
            name: of the grid.
            qparams: of the grid.
            packed: take 4 bits where they suffice.
            unsigned: codes from 0 on, the same grid moved.

        Raises:
            UserError: a zero point that is no code.
        """
        zero_point = qparams.zero_point
        codes = (zero_point == zero_point.round()) & (zero_point >= qparams.quant_min) & (zero_point <= qparams.quant_max)
        if not bool(codes.all()):
            raise UserError(f"{name}.zero_point", float(zero_point[~codes].flatten()[0]), allowed="one of the codes, as in ONNX")
        qparams, dtype, offset = moved(qparams, packed=packed, unsigned=unsigned)
        scale = self.tensor(f"{name}.scale", qparams.scale.float())
        return Grid(scale, self.codes(f"{name}.zero_point", qparams.zero_point, dtype), qparams, dtype, offset)

    def codes(self, name: str, values: Tensor, dtype: str) -> str:
        """Integer codes as an initializer; of 4 bit ones the first of two lies in the low half of a byte.

        Args:
            name: of the initializer.
            values: the codes.
            dtype: ONNX's name of their type (`INT8`).
        """
        name, array = self.name(name), values.detach().cpu().to(torch.int32).numpy()
        if "4" in dtype:
            nibbles = np.pad(array.ravel() & 15, (0, array.size % 2)).astype(np.uint8)
            data = (nibbles[::2] | nibbles[1::2] << 4).tobytes()
        else:
            data = array.astype(dtype.lower()).tobytes()
        kind = getattr(self.onnx.TensorProto, dtype)
        self.initializers.append(self.onnx.helper.make_tensor(name, kind, array.shape, data, raw=True))
        return name

    def float8(self, name: str, numbers: Tensor, dtype: str) -> str:
        """Numbers of a floating-point format of 8 bits as an initializer.

        Args:
            name: of the initializer.
            numbers: float32, each of them one of the format's.
            dtype: ONNX's name of their type (`FLOAT8E4M3FN`).
        """
        name, values = self.name(name), numbers.detach().cpu().contiguous().to(_FLOAT8[dtype])
        kind, data = getattr(self.onnx.TensorProto, dtype), values.view(torch.uint8).numpy().tobytes()
        self.initializers.append(self.onnx.helper.make_tensor(name, kind, tuple(values.shape), data, raw=True))
        return name

    def quantize(self, value: str, grid: Grid, name: str) -> str:
        """QuantizeLinear: saturate(round_half_even(x / scale) + zero_point)."""
        return self.node("QuantizeLinear", [value, grid.scale, grid.zero_point], name, **_axis(grid))[0]

    def dequantize(self, codes: str, grid: Grid, name: str) -> str:
        """DequantizeLinear: (code - zero_point) * scale."""
        return self.node("DequantizeLinear", [codes, grid.scale, grid.zero_point], name, **_axis(grid))[0]

    def quantize_dynamically(self, value: str, name: str) -> tuple[str, str, str]:
        """DynamicQuantizeLinear: UINT8 codes of each batch's own range, widened to zero; codes, scale, zero point."""
        name = self.name(name)
        outputs = [name, self.name(f"{name}.scale"), self.name(f"{name}.zero_point")]
        self.nodes.append(self.onnx.helper.make_node("DynamicQuantizeLinear", [value], outputs, name=name))
        return outputs[0], outputs[1], outputs[2]

    def drop_unread(self, operator: str, returned: str) -> None:
        """Remove nodes of one kind whose result nothing reads.

        Args:
            operator: ONNX's name.
            returned: name of the tensor that the network returns, which is read.
        """
        read = {returned} | {name for node in self.nodes for name in node.input}
        self.nodes[:] = [node for node in self.nodes if node.op_type != operator or read & set(node.output)]

    def model(self, result: str, image_shape: Sequence[int], output_shape: Sequence[int], about: Mapping[str, object]) -> Any:
        """The model, checked: float32 [N, *image_shape] `images` -> float32 [N, *output_shape] `logits`, N any.

        Args:
            result: name of the tensor that the network returns.
            image_shape: of one image.
            output_shape: of one image's result.
            about: for the file's reader, plain values.
        """
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [result], [OUTPUT], name=OUTPUT))
        graph = helper.make_graph(
            self.nodes,
            "qexp",
            [helper.make_tensor_value_info(INPUT, float32, [BATCH, *image_shape])],
            [helper.make_tensor_value_info(OUTPUT, float32, [BATCH, *output_shape])],
            self.initializers,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        model.producer_name, model.producer_version = "qexp", environment.versions().get("qexp", "")
        helper.set_model_props(model, {key: str(value) for key, value in about.items()})
        self.onnx.checker.check_model(model, full_check=True)
        return model


def _axis(grid: Grid) -> dict[str, int]:
    return {} if grid.qparams.axis is None else {"axis": grid.qparams.axis}
