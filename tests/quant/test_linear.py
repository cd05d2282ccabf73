"""The linear map against document 002's code, and its inverse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.base.errors import UserError
from qexp.quant.linear import linear_dequantize, linear_quantize


def document_002(input, bits):  # noqa: A002
    """The function as printed in the document."""
    range1 = input.max() - input.min()
    temp = (input - input.min()) / range1

    range2 = math.pow(2.0, bits) - 1
    min_v = -math.pow(2.0, bits - 1)
    ret = (temp.float() * range2) + min_v
    ret = ret.float()

    return ret


SHAPES = {
    "vector": lambda: torch.randn(1001),
    "conv": lambda: torch.randn(17, 5, 3, 3) * 0.02,
    "channels_last": lambda: torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(30, 40).t(),
    "strided": lambda: torch.randn(64, 10)[::3, ::2],
    "offset": lambda: torch.rand(500) + 1000,
    "negative": lambda: -torch.rand(500),
    "half": lambda: torch.randn(500).half(),
    "bfloat16": lambda: torch.randn(500).bfloat16(),
    "double": lambda: torch.randn(500).double(),
    "integers": lambda: torch.arange(10),
}


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_document_002_bit_for_bit(shape, bits):
    torch.manual_seed(0)
    tensor = SHAPES[shape]()
    codes, expected = linear_quantize(tensor, bits), document_002(tensor, bits)
    assert codes.dtype == torch.float32 and codes.shape == tensor.shape
    assert torch.equal(codes.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))


def test_codes_are_not_rounded_and_fill_the_range():
    codes = linear_quantize(torch.randn(1000, generator=torch.Generator().manual_seed(0)), 4)
    assert codes.min() == -8 and codes.max() == 7
    assert (codes != codes.round()).sum() > 900


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.full((5,), 0.3), "constant 0.3"),
        (torch.tensor(2.0), "constant 2"),
        (torch.empty(0, 3), "at least one element"),
        (torch.tensor([1.0, math.nan]), "NaN"),
        (torch.tensor([1.0, math.inf]), "infinity"),
        (torch.tensor([1.0, -math.inf, 0.0]), "infinity"),
        (torch.tensor([-3e38, 3e38]), "overflows"),
        (torch.tensor([-6e4, 6e4]).half(), "overflows"),
    ],
)
def test_undefined_raises(tensor, word):
    with pytest.raises(UserError, match=word):
        linear_quantize(tensor, 8)


@pytest.mark.parametrize("bits", [0, 17])
def test_width_out_of_range_raises(bits):
    with pytest.raises(UserError, match="1 to 16"):
        linear_quantize(torch.arange(3.0), bits)
    with pytest.raises(UserError, match="1 to 16"):
        linear_dequantize(torch.arange(3.0), bits, 0.0, 1.0)


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40).filter(lambda v: max(v) - min(v) > 1e-3),
    bits=st.integers(1, 16),
)
def test_inverse(values, bits):
    x = torch.tensor(values)
    codes = linear_quantize(x, bits)
    back = linear_dequantize(codes, bits, x.min(), x.max())
    largest = x.abs().max() + (x.max() - x.min())
    # a code near -2^(b-1) keeps 24 bits of its own magnitude: at most 4 units in the last place of the largest number involved
    assert (back - x).abs().max() <= 4 * 2.0**-23 * largest


def test_inverse_takes_numbers_channels_and_its_own_memory():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    codes = linear_quantize(x, 8).round()
    expected = linear_dequantize(codes, 8, x.min(), x.max())
    assert torch.equal(linear_dequantize(codes, 8, float(x.min()), float(x.max())), expected)
    columns = linear_dequantize(codes, 8, x.min().expand(4, 1), x.max().expand(4, 1))
    assert torch.equal(columns, expected)
    assert linear_dequantize(codes, 8, x.min(), x.max(), out=codes) is codes and torch.equal(codes, expected)
    assert (expected - x).abs().max() <= (x.max() - x.min()) / 255 / 2 * 1.0001
