"""Tensors in a file: packed codes, unique names, grids, and what is said where the library is missing."""

import sys

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.types import QParams
from qexp.deploy.onnx.writer import OnnxWriter, code_type, onnx_library


def qparams(low, high, zero_point=0.0):
    return QParams(torch.tensor(0.1), torch.tensor(zero_point), low, high)


@pytest.fixture
def writer():
    pytest.importorskip("onnx", reason="needs onnx: pip install 'qexp[deploy]'")
    return OnnxWriter()


@pytest.mark.parametrize(
    ("low", "high", "packed", "expected"),
    [(-127, 127, False, "INT8"), (-8, 7, False, "INT8"), (-8, 7, True, "INT4"), (0, 15, True, "UINT4"), (0, 3, False, "UINT8"),
     (0, 255, False, "UINT8"), (-128, 127, True, "INT8"), (0, 256, False, "UINT16"), (-129, 0, False, "INT16")],
)  # fmt: skip
def test_the_narrowest_type_that_holds_the_codes(low, high, packed, expected):
    assert code_type(qparams(low, high), packed=packed) == expected


@pytest.mark.parametrize("dtype", ["INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"])
@pytest.mark.parametrize("count", [6, 7])
def test_codes_are_read_back_by_onnx(writer, dtype, count):
    low, high = {"INT4": (-8, 7), "UINT4": (0, 15)}.get(dtype, (0 if dtype.startswith("U") else -100, 100))
    codes = torch.linspace(low, high, count).round().int().reshape(1, count)
    assert writer.codes("w", codes, dtype) == "w"
    stored = writer.onnx.numpy_helper.to_array(writer.initializers[0])
    assert stored.astype("int32").tolist() == codes.tolist()
    assert len(writer.initializers[0].raw_data) == {"4": -(-count // 2), "8": count, "6": 2 * count}[dtype[-1]]


def test_names_are_given_once_and_equal_constants_are_one(writer):
    assert [writer.name("a"), writer.name("a"), writer.name("a_1"), writer.name("a")] == ["a", "a_1", "a_1_1", "a_2"]
    assert writer.name("images") != "images"
    assert writer.constant(1.0) == writer.constant(1.0) != writer.constant([1])


def test_an_unsigned_grid_is_the_same_grid_moved(writer):
    grid = writer.grid("place", qparams(-128, 127, -128.0), unsigned=True)
    assert (grid.dtype, grid.offset, float(grid.qparams.zero_point), grid.is_narrow) == ("UINT8", 128, 0.0, False)
    narrow = writer.grid("four", qparams(-8, 7, -8.0), unsigned=True)
    assert (narrow.qparams.quant_min, narrow.qparams.quant_max, narrow.is_narrow) == (120, 135, True)
    grid = writer.grid("relu", qparams(0, 255), unsigned=True)
    assert (grid.dtype, grid.offset) == ("UINT8", 0)


@pytest.mark.parametrize("zero_point", [0.5, -300.0])
def test_a_zero_point_that_is_no_code_is_refused(writer, zero_point):
    with pytest.raises(UserError, match=r"place\.zero_point="):
        writer.grid("place", qparams(-128, 127, zero_point))


def test_without_onnx_there_is_one_clear_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'qexp\[deploy\]'"):
        onnx_library()
