"""TFLite's operators: the table of options of each, and the version that a runtime must have to read it.

A runtime that knows only lower versions refuses the file when it loads it, instead of reading an operator otherwise than meant.
Source: TensorFlow's op_version.cc, `GetBuiltinOperatorVersion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Operator -> the table of its options, and the version that a runtime must have to read it with float32, int8 and int16.
_OPERATORS: dict[str, tuple[str, int, int, int]] = {
    "ADD": ("AddOptions", 1, 2, 3),
    "AVERAGE_POOL_2D": ("Pool2DOptions", 1, 2, 3),
    "CONCATENATION": ("ConcatenationOptions", 1, 2, 3),
    "CONV_2D": ("Conv2DOptions", 1, 3, 4),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", 1, 3, 5),
    "DEQUANTIZE": ("DequantizeOptions", 1, 2, 3),
    "DIV": ("DivOptions", 1, 2, 2),
    "ELU": ("", 1, 1, 1),
    "EXP": ("ExpOptions", 1, 2, 2),
    "ABS": ("AbsOptions", 1, 2, 3),
    "FULLY_CONNECTED": ("FullyConnectedOptions", 1, 4, 7),
    "GELU": ("GeluOptions", 1, 2, 2),
    "HARD_SWISH": ("HardSwishOptions", 1, 1, 1),
    "LEAKY_RELU": ("LeakyReluOptions", 1, 2, 2),
    "LOGISTIC": ("", 1, 2, 3),
    "MAXIMUM": ("MaximumMinimumOptions", 1, 2, 4),
    "MAX_POOL_2D": ("Pool2DOptions", 1, 2, 3),
    "MEAN": ("ReducerOptions", 1, 2, 3),
    "MINIMUM": ("MaximumMinimumOptions", 1, 2, 4),
    "MUL": ("MulOptions", 1, 2, 4),
    "PAD": ("PadOptions", 1, 2, 3),
    "PADV2": ("PadV2Options", 1, 2, 2),
    "PRELU": ("", 1, 1, 1),
    "QUANTIZE": ("QuantizeOptions", 1, 2, 2),
    "REDUCE_MAX": ("ReducerOptions", 1, 2, 3),
    "RELU": ("", 1, 2, 2),
    "RELU6": ("", 1, 2, 2),
    "RESHAPE": ("ReshapeOptions", 1, 1, 1),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", 3, 3, 4),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", 3, 3, 4),
    "RSQRT": ("", 1, 2, 3),
    "SOFTMAX": ("SoftmaxOptions", 1, 2, 3),
    "STRIDED_SLICE": ("StridedSliceOptions", 1, 2, 4),
    "SUB": ("SubOptions", 1, 2, 5),
    "SUM": ("ReducerOptions", 1, 2, 2),
    "TANH": ("", 1, 2, 3),
    "TRANSPOSE": ("TransposeOptions", 1, 2, 5),
}
OPTIONS: dict[str, str] = {kind: row[0] for kind, row in _OPERATORS.items()}


def version_of(kind: str, types: Any, tensors: Sequence[Any], options: Mapping[str, Any]) -> int:
    """The version of an operator: the largest of that of its types and those of what it does.

    Args:
        kind: TFLite's name, of `OPTIONS`.
        types: the schema's TensorType.
        tensors: its operands, None for one that is left out, and last its result.
        options: of the operator.
    """
    first, result = tensors[0], tensors[-1]
    held = {first.type, result.type}
    _, of_floats, of_8_bits, of_16_bits = _OPERATORS[kind]
    version = of_16_bits if types.INT16 in held else of_8_bits if types.INT8 in held else of_floats
    if kind == "CONV_2D" and first.shape[3] != tensors[1].shape[3]:  # grouped
        return max(version, 6)
    if kind == "DEPTHWISE_CONV_2D" and (options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)) != (1, 1):
        return max(version, 2)
    if kind == "FULLY_CONNECTED" and options.get("keepNumDims"):
        return max(version, 5)
    if kind == "TRANSPOSE" and len(first.shape) > 4:
        return max(version, 4)
    if kind == "MUL" and result.quantization is not None:
        ratio = float(first.quantization.scale[0]) * float(tensors[1].quantization.scale[0]) / float(result.quantization.scale[0])
        return max(version, 3) if ratio >= 1 else version
    return version
