"""What a TFLite file would need of a microcontroller, and what of it an Edge TPU would take: estimates on paper.

A microcontroller keeps the file in flash and all that changes in an arena in RAM, which TFLite Micro plans before the first run:
each tensor has an offset for as long as something still reads it. The same plan is made here, of one image. Beside the arena come
the interpreter's own structures, what a kernel takes for itself, and the code in flash; these are not counted.

The Edge TPU's compiler takes operators in the order of the file up to the first that it does not support; that one and all
behind it run on the CPU.

Rejected: the sum of the two largest neighbours as RAM, as papers count it: a shortcut keeps a third alive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.deploy.tflite.writer import schema_library, text, unpack

_ALIGNMENT = 16  # bytes: TFLite Micro's for tensors
_BYTES = {"FLOAT32": 4, "INT32": 4, "INT64": 8, "INT16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1}
_WEIGHT = ".weight"
# Coral, "Edge TPU supported operations"; those that read or write codes.
_EDGE_TPU = frozenset(
    """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED L2_NORMALIZATION LOGISTIC MAXIMUM
    MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SQUEEZE STRIDED_SLICE SUB SUM SQUARED_DIFFERENCE TANH
    TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM
    """.split()
)
_CODES = ("INT8", "UINT8")


@dataclass(frozen=True)
class TargetRow:
    """What is estimated of one file for one target.

    Args:
        target: of `export.target`.
        prec1: of the file as LiteRT runs it, percent.
        num_operators: of the file.
        flash_bytes: of a microcontroller: the file.
        arena_bytes: of a microcontroller: RAM for the tensors of one image.
        num_mapped: operators that an Edge TPU takes.
        mapped_macs_pct: their share of the MACs, percent.
        first_fallback: the first operator that it does not take, and of which layer; None where it takes all.
        reason: why it does not.
    """

    target: str
    prec1: float
    num_operators: int
    flash_bytes: int | None = None
    arena_bytes: int | None = None
    num_mapped: int | None = None
    mapped_macs_pct: float | None = None
    first_fallback: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Lifetime:
    """A tensor in the arena.

    Args:
        size: bytes.
        first: number of the operator that writes it.
        last: number of the last one that reads it.
    """

    size: int
    first: int
    last: int


def place(tensors: Sequence[Lifetime]) -> list[int]:
    """The offset of each tensor, bytes: the largest first, each at the lowest gap among those that live when it does.

    Args:
        tensors: in the order of the file, which decides among equals.

    Source: TFLite Micro, greedy_memory_planner.h.

    >>> place([Lifetime(32, 0, 1), Lifetime(16, 1, 2), Lifetime(32, 2, 3)])
    [0, 32, 0]
    """
    offsets: dict[int, int] = {}
    for number in sorted(range(len(tensors)), key=lambda one: -tensors[one].size):
        own, start = tensors[number], 0
        living = [other for other in offsets if tensors[other].first <= own.last and own.first <= tensors[other].last]
        for other in sorted(living, key=offsets.__getitem__):
            if offsets[other] - start >= _aligned(own.size):
                break
            start = max(start, offsets[other] + _aligned(tensors[other].size))
        offsets[number] = start
    return [offsets[number] for number in range(len(tensors))]


def arena_bytes(model: Any) -> int:
    """RAM for all tensors of a file that are no constants, of one image.

    Args:
        model: unpacked TFLite file.
    """
    tensors = _lifetimes(model)
    return max((start + _aligned(one.size) for start, one in zip(place(tensors), tensors, strict=True)), default=0)


def estimates(targets: Sequence[str], path: Path, prec1: float, macs: Mapping[str, int]) -> list[TargetRow]:
    """A row for each target.

    Args:
        targets: of `export.target`.
        path: of the TFLite file.
        prec1: of the file in LiteRT, percent.
        macs: layer -> multiply-accumulates of one image.
    """
    content = path.read_bytes()
    model = unpack(content)
    count = len(model.subgraphs[0].operators)
    rows = {
        "mcu": lambda: TargetRow("mcu", prec1, count, flash_bytes=len(content), arena_bytes=arena_bytes(model)),
        "edgetpu": lambda: _edge_tpu(model, prec1, macs),
    }
    return [rows[target]() for target in targets]


def _edge_tpu(model: Any, prec1: float, macs: Mapping[str, int]) -> TargetRow:
    """What the Edge TPU's compiler takes of a file, by its rules."""
    operators = model.subgraphs[0].operators
    names = [_layer(model, one) for one in operators]
    reasons = [_refused(model, one) for one in operators]
    mapped = next((number for number, reason in enumerate(reasons) if reason), len(operators))
    total = sum(macs.values())
    taken = sum(macs.get(name, 0) for name in set(names[:mapped]))
    fallback, reason = None, None
    if mapped < len(operators):
        fallback, reason = f"{_operator(model, operators[mapped])} {names[mapped]}", reasons[mapped]
    share = 100 * taken / total if total else None
    return TargetRow(
        "edgetpu", prec1, len(operators), num_mapped=mapped, mapped_macs_pct=share, first_fallback=fallback, reason=reason
    )


def _refused(model: Any, operator: Any) -> str:
    """Why an Edge TPU does not take an operator; empty where it does.

    Source: Coral, "TensorFlow models on the Edge TPU", model requirements and supported operations.
    """
    graph, name = model.subgraphs[0], _operator(model, operator)
    if name not in _EDGE_TPU:
        return "no operator of the Edge TPU"
    tensors = [graph.tensors[number] for number in (*operator.inputs, *operator.outputs) if number >= 0]
    values = [one for one in tensors if not _is_constant(model, one)]
    types = {_type(one) for one in values} | {_type(one) for one in tensors if _type(one) == "FLOAT32"}
    if other := sorted(types - set(_CODES)):
        return f"{', '.join(other)} where it takes INT8 alone"
    if any(math.prod(one.shape[:-3]) > 1 for one in values):
        return "more than three dimensions above 1"
    if name == "SOFTMAX" and max(int(size) for one in values for size in one.shape) > 16_000:
        return "a softmax over more than 16 000 values"
    return ""


def _lifetimes(model: Any) -> list[Lifetime]:
    """The tensors that a run writes, and the images."""
    graph = model.subgraphs[0]
    first = {int(number): 0 for number in graph.inputs}
    last: dict[int, int] = {}
    for step, operator in enumerate(graph.operators):
        for number in operator.outputs:
            first.setdefault(int(number), step)
            last.setdefault(int(number), step)
        for number in operator.inputs:
            last[int(number)] = step
    last |= {int(number): len(graph.operators) - 1 for number in graph.outputs}
    sizes = {number: math.prod(graph.tensors[number].shape) * _BYTES[_type(graph.tensors[number])] for number in first}
    return [Lifetime(int(sizes[number]), first[number], last.get(number, 0)) for number in sorted(first)]


def _layer(model: Any, operator: Any) -> str:
    """The layer whose weight an operator reads, or the name of its result."""
    graph = model.subgraphs[0]
    names = [text(graph.tensors[number].name) for number in operator.inputs if number >= 0]
    weight = next((name for name in names if _WEIGHT in name), None)
    return text(graph.tensors[operator.outputs[0]].name) if weight is None else weight.partition(_WEIGHT)[0]


def _operator(model: Any, operator: Any) -> str:
    """The name of a builtin operator, as the schema has it."""
    kinds = {value: name for name, value in vars(schema_library().BuiltinOperator).items() if isinstance(value, int)}
    code = model.operatorCodes[operator.opcodeIndex]
    return str(kinds[max(code.builtinCode, code.deprecatedBuiltinCode)])


def _type(tensor: Any) -> str:
    kinds = {value: name for name, value in vars(schema_library().TensorType).items() if isinstance(value, int)}
    return str(kinds[tensor.type])


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
