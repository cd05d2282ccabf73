"""A .tflite file in LiteRT's interpreter.

The interpreter hands what it can to XNNPACK, its default delegate, which brings sums to the next grid by float32 multipliers and
rounds half to even; other operators run in its own kernels, by multipliers of 31 bits that round half away. Both are integers
otherwise, and differ by a code at ties. What XNNPACK takes can be looked at only where the file says that it is an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.deploy.tflite.writer import POINTS, metadata, pack, schema_library, text, unpack

TFLITE_SUFFIX = ".tflite"
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_WEIGHT = ".weight"

RunBatch = Callable[[Tensor, bool], list[Tensor]]


class TfliteSession:
    """A loaded file, with the codes of activation points as outputs behind the logits.

    Args:
        path: of the file.
        threads: of one run.
        points: activation points whose codes to give.
        delegate: let XNNPACK have what it takes, as the interpreter does by default.
    """

    def __init__(self, path: Path, *, threads: int = 1, points: Sequence[str] = (), delegate: bool = True) -> None:
        if not path.exists():
            raise UserError("export.runtime", "litert", allowed=f"a network that was written as {path.name}")
        self.path, self.threads, self.delegate = path, threads, delegate
        self.places: list[Any] = []
        self._shown: bytes | None = None
        if points:
            model = unpack(path.read_bytes())
            known = metadata(model, POINTS)
            self.places = [known[point] for point in points]
            self._shown = self._with_outputs(model)
        self._interpreter, self._shape = self._load(None), ()

    def _with_outputs(self, model: Any) -> bytes:
        """The file with the tensors of activation points as further outputs, each once."""
        graph = model.subgraphs[0]
        numbers = {text(tensor.name): number for number, tensor in enumerate(graph.tensors)}
        graph.outputs = list(dict.fromkeys([*(int(one) for one in graph.outputs), *(numbers[place[0]] for place in self.places)]))
        return pack(model)

    def _load(self, shape: tuple[int, ...] | None) -> Any:
        """An interpreter for a shape of images; None is that of one image."""
        from ai_edge_litert import interpreter as litert

        kinds = litert.OpResolverType
        kind = kinds.BUILTIN if self.delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        source: dict[str, Any] = {"model_path": str(self.path)} if self._shown is None else {"model_content": self._shown}
        interpreter = litert.Interpreter(**source, num_threads=self.threads, experimental_op_resolver_type=kind)
        if shape is not None:
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], shape)
        interpreter.allocate_tensors()
        return interpreter

    def run(self, images: Tensor) -> list[Tensor]:
        """Float32 [N, C, H, W] images -> float32 [N, classes] logits, and the file's codes of each point, in torch's layout."""
        array = np.ascontiguousarray((images.movedim(1, -1) if images.dim() == 4 else images).numpy())
        if array.shape != self._shape:
            self._interpreter, self._shape = self._load(array.shape), array.shape
        details = self._interpreter.get_input_details()[0]
        self._interpreter.set_tensor(details["index"], _coded(array, details))
        self._interpreter.invoke()
        details = self._interpreter.get_output_details()  # in the order of the file's outputs
        logits = torch.from_numpy(_values(self._interpreter.get_tensor(details[0]["index"]), details[0]))
        by_name = {detail["name"]: detail["index"] for detail in details}
        return [logits, *(_placed(self._interpreter.get_tensor(by_name[name]), layout) for name, _, layout in self.places)]

    @property
    def logit_step(self) -> float:
        """The step of the logits where the file gives codes of them, else 0."""
        return float(self._interpreter.get_output_details()[0]["quantization"][0])

    def integer_layers(self) -> frozenset[str]:
        """The layers whose operands, weights and results are all codes, which TFLite's operators compute in integers."""
        layers = layer_operators(unpack(self.path.read_bytes()))
        return frozenset(name.partition(_WEIGHT)[0] for name, is_integer in layers if is_integer and _WEIGHT in name)


def layer_operators(model: Any) -> Iterator[tuple[str, bool]]:
    """The name of what each layer of a file multiplies by, and whether its operands and its result are codes."""
    schema, graph = schema_library(), model.subgraphs[0]
    kinds = {getattr(schema.BuiltinOperator, name) for name in _LAYERS}
    integers = (schema.TensorType.INT8, schema.TensorType.INT16, schema.TensorType.UINT8)
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        # Files of old writers have the operator in the field that held all of them, when they were fewer than 128.
        if max(code.builtinCode, code.deprecatedBuiltinCode) in kinds:
            ends = (operator.inputs[0], operator.inputs[1], operator.outputs[0])
            is_integer = all(graph.tensors[number].type in integers for number in ends)
            yield text(graph.tensors[operator.inputs[1]].name), is_integer


def _coded(images: Any, details: Any) -> Any:
    """Images as a file takes them: as they are, or as codes, clamp(round_half_even(x / scale) + zero_point)."""
    scale, zero_point = details["quantization"]
    if details["dtype"] == np.float32:
        return images
    return np.clip(np.rint(images / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def _values(logits: Any, details: Any) -> Any:
    """Logits as float32, of codes or not."""
    scale, zero_point = details["quantization"]
    return logits if logits.dtype == np.float32 else (logits.astype(np.float32) - zero_point) * np.float32(scale)


def _placed(codes: Any, layout: str | list[int]) -> Tensor:
    """Codes with their dimensions in torch's order, int32."""
    values = torch.from_numpy(codes).to(torch.int32)
    if layout == "first":
        return values
    if layout == "last":
        return values.movedim(-1, 1).contiguous()
    c, h, w = (int(size) for size in layout)
    return values.reshape(-1, h, w, c).movedim(-1, 1).flatten(1)


def open_tflite(path: Path, threads: int, offsets: Mapping[str, int]) -> tuple[RunBatch, TfliteSession]:
    """What runs a batch, (images, with codes?) -> logits and codes, and the session.

    Args:
        path: of the file.
        threads: of one run.
        offsets: activation point -> what the caller takes to have been added to qexp's codes.
    """
    session = TfliteSession(path, threads=threads, points=tuple(offsets))
    moved = [wanted - own for wanted, (_, own, _) in zip(offsets.values(), session.places, strict=True)]

    def call(images: Tensor, with_codes: bool) -> list[Tensor]:
        logits, *codes = session.run(images)
        return [logits, *(values + by for values, by in zip(codes, moved, strict=True))] if with_codes else [logits]

    return call, session
