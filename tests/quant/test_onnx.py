"""The `divide` arithmetic and the packed codes against onnxruntime, in models spelled by hand: needs no onnx."""

from __future__ import annotations

import numpy as np
import onnxruntime as runtime
import pytest
import torch

from qexp.base.types import QParams
from qexp.quant.affine import dequantize_affine, quantize_affine
from qexp.quant.packing import pack
from qexp.quant.qparams import choose_qparams
from qexp.quant.ranges import min_max

SCALES = (0.1, 0.0371, 1.0, 0.5, 1e-4, 3.7e-3)
FLOAT, UINT8, INT8, UINT16, INT16, UINT4, INT4, UINT2, INT2 = 1, 2, 3, 4, 5, 21, 22, 25, 26
TYPES = {  # name -> onnx.proto's data type, bits, signed
    "int8": (INT8, 8, True),
    "uint8": (UINT8, 8, False),
    "int16": (INT16, 16, True),
    "uint16": (UINT16, 16, False),
    "int4": (INT4, 4, True),
    "uint4": (UINT4, 4, False),
    "int2": (INT2, 2, True),
    "uint2": (UINT2, 2, False),
}


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message of (field number, value)."""

    def varint(value: int) -> bytes:
        text = b""
        while value > 127:
            text, value = text + bytes([value & 127 | 128]), value >> 7
        return text + bytes([value])

    text = b""
    for number, value in fields:
        if isinstance(value, int):
            text += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            text += varint(number << 3 | 2) + varint(len(content)) + content
    return text


def constant(name: str, kind: int, shape: tuple[int, ...], data: bytes) -> bytes:
    """A TensorProto with raw data."""
    return message(*[(1, size) for size in shape], (2, kind), (8, name), (9, data))


def session(
    kind: int, scale: np.ndarray, zero_point: bytes, *, axis: int | None = None, block: int = 0, codes: bytes | None = None
):
    """x -> QuantizeLinear -> DequantizeLinear -> y; or from stored codes, where they are given, of shape [3, 5]."""
    options = [] if axis is None else [(5, message((1, "axis"), (3, axis), (20, 2)))]
    options += [(5, message((1, "block_size"), (3, block), (20, 2)))] if block else []
    back = message((1, "codes"), (1, "scale"), (1, "zero_point"), (2, "y"), (4, "DequantizeLinear"), *options)
    quantize = message((1, "x"), (1, "scale"), (1, "zero_point"), (2, "codes"), (4, "QuantizeLinear"), *options)
    stored = [] if codes is None else [(5, constant("codes", kind, (3, 5), codes))]
    tensor = message((1, message((1, FLOAT))))
    graph = message(
        *([(1, quantize)] if codes is None else []),
        (1, back),
        (2, "g"),
        (5, constant("scale", FLOAT, scale.shape, scale.astype("<f4").tobytes())),
        (5, constant("zero_point", kind, scale.shape, zero_point)),
        *stored,
        *([(11, message((1, "x"), (2, tensor)))] if codes is None else []),
        (12, message((1, "y"), (2, tensor))),
    )
    opset = 25 if kind in (INT2, UINT2) else 21
    model = message((1, 10 if opset == 21 else 13), (7, graph), (8, message((1, ""), (2, opset))))
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    try:
        return runtime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        if kind in (INT2, UINT2):
            pytest.skip(f"onnxruntime {runtime.__version__} has no 2-bit types: {str(error)[:80]}")
        raise


def grid(name: str, scale: torch.Tensor, zero_point: torch.Tensor, axis: int | None = None) -> QParams:
    _, bits, signed = TYPES[name]
    low = -(2 ** (bits - 1)) if signed else 0
    return QParams(scale, zero_point, low, low + 2**bits - 1, axis)


def stored(zero_point: torch.Tensor, name: str) -> bytes:
    _, bits, signed = TYPES[name]
    return bytes(pack(zero_point.to(torch.int32), bits, signed=signed).tolist())


def ours(x: torch.Tensor, qparams: QParams) -> torch.Tensor:
    return dequantize_affine(quantize_affine(x, qparams, arithmetic="divide"), qparams)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TYPES)
def test_divide_is_onnx_per_tensor(name, scale):
    scale, zero_point = torch.tensor(scale), torch.tensor(1.0)
    reach = min(300, 2 ** TYPES[name][1])
    ties = (torch.arange(-reach, reach) + 0.5) * scale
    random = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * scale * reach / 3
    x = torch.cat([ties, random, torch.tensor([0.0, -0.0, 1e-40]), torch.tensor([1e9, -1e9]) * scale])  # 2 bits: cast to int32
    model = session(TYPES[name][0], scale.numpy(), stored(zero_point, name))
    assert torch.equal(torch.from_numpy(model.run(None, {"x": x.numpy()})[0]), ours(x, grid(name, scale, zero_point)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["int8", "uint8", "int4", "int16", "int2"])
def test_divide_is_onnx_per_axis(name, axis):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(axis))
    low, high = min_max(x, axis)
    chosen = choose_qparams(low, high, TYPES[name][1], axis=axis)
    shift = 0 if TYPES[name][2] else 2.0 ** (TYPES[name][1] - 1)
    qparams = grid(name, chosen.scale, chosen.zero_point + shift, axis)
    model = session(TYPES[name][0], chosen.scale.numpy(), stored(qparams.zero_point, name), axis=axis)
    assert torch.equal(torch.from_numpy(model.run(None, {"x": x.numpy()})[0]), ours(x, qparams))


def test_groups_are_onnx_blocks():
    """`per_group` is ONNX's blocked quantization along the last axis of a matrix."""
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    rows = x.reshape(-1, 8)
    chosen = choose_qparams(*min_max(rows, 0), 4, axis=0)
    expected = ours(rows, chosen).reshape(6, 32)
    scale = chosen.scale.reshape(6, 4)
    model = session(INT4, scale.numpy(), stored(chosen.zero_point, "int4"), axis=1, block=8)
    assert torch.equal(torch.from_numpy(model.run(None, {"x": x.numpy()})[0]), expected)


@pytest.mark.parametrize("name", TYPES)
def test_packed_codes_are_onnx_stored_tensors(name):
    kind, bits, signed = TYPES[name]
    low = -(2 ** (bits - 1)) if signed else 0
    codes = torch.randint(low, low + 2**bits, (3, 5), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    scale, zero_point = torch.tensor(0.5), torch.tensor(1.0)
    data = bytes(pack(codes, bits, signed=signed).tolist())
    model = session(kind, scale.numpy(), stored(zero_point, name), codes=data)
    decoded = torch.from_numpy(model.run(None, {})[0])
    assert torch.equal(decoded, dequantize_affine(codes, grid(name, scale, zero_point)))
