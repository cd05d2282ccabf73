"""Codes as bytes: the bit order by hand, the round trip by hypothesis, and what a quantized tensor takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.packing import pack, unpack
from qexp.quant.storage import packed_bytes, stored_bytes


@st.composite
def codes_of_some_width(draw):
    bits, signed = draw(st.integers(1, 16)), draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    count = int(torch.tensor([1, *shape]).prod())
    values = draw(st.lists(st.integers(low, low + 2**bits - 1), min_size=count, max_size=count))
    return bits, signed, torch.tensor(values, dtype=torch.int32).reshape(shape)


@given(codes_of_some_width())
def test_round_trip(drawn):
    bits, signed, codes = drawn
    data = pack(codes, bits, signed=signed)
    assert data.dtype == torch.uint8 and data.shape == (packed_bytes(codes.shape, bits),)
    back = unpack(data, bits, codes.shape, signed=signed)
    assert back.dtype == torch.int32 and torch.equal(back, codes)


@given(codes_of_some_width())
def test_bit_order(drawn):
    """One long integer: element i shifted left by i * bits, written little-endian."""
    bits, signed, codes = drawn
    number = sum((code % 2**bits) << index * bits for index, code in enumerate(codes.flatten().tolist()))
    assert bytes(pack(codes, bits, signed=signed).tolist()) == number.to_bytes(packed_bytes(codes.shape, bits), "little")


def test_by_hand():
    assert pack(torch.tensor([1, 2, 3]), 4, signed=False).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1, signed=False).tolist() == [0b1101, 1]
    assert pack(torch.tensor([-1, 1]), 3, signed=True).tolist() == [0b001_111]
    assert pack(torch.tensor([-2, 258]), 16, signed=True).tolist() == [254, 255, 2, 1]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int64])
def test_any_integer_dtype_and_layout(dtype):
    codes = torch.arange(12).reshape(3, 4).to(dtype).t()
    assert torch.equal(unpack(pack(codes, 5, signed=False), 5, (4, 3), signed=False), codes.int())


def test_refusals():
    with pytest.raises(UserError, match="4 bits hold, -8 to 7"):
        pack(torch.tensor([8]), 4, signed=True)
    with pytest.raises(UserError, match="0 to 15"):
        pack(torch.tensor([-1]), 4, signed=False)
    for bits in (0, 17):
        with pytest.raises(UserError, match="1 to 16"):
            pack(torch.tensor([0]), bits, signed=False)
    for codes in (torch.tensor([1.0]), torch.tensor([True])):
        with pytest.raises(UserError, match="integer dtype"):
            pack(codes, 4, signed=False)
    with pytest.raises(UserError, match=r"uint8 \[2\]"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, (3,), signed=False)


@pytest.mark.parametrize(
    ("spec", "num_bytes"),
    [  # a tensor of shape 4, 3, 3, 3: 108 elements
        ({"scheme": "affine", "bits": 3}, 41 + 8),
        ({"scheme": "linear", "bits": 16}, 216 + 8),
        ({"scheme": "symmetric", "bits": 8, "granularity": "per_channel"}, 108 + 4 * 4),
        ({"scheme": "affine", "bits": 8, "granularity": "per_channel", "axis": 1}, 108 + 3 * 8),
        ({"scheme": "affine", "bits": 4, "granularity": "per_group", "group_size": 10}, 54 + 4 * 3 * 8),
        ({"scheme": "scale_factor", "bits": 8, "granularity": "per_in_out_channel"}, 108 + 12 * 4),
        ({"scheme": "pow2_scale", "bits": 2, "granularity": "per_channel"}, 27 + 4),
        ({"scheme": "fixed_point", "bits": 8}, 108),
        ({"scheme": "dorefa", "bits": 2}, 27),
        ({"scheme": "dorefa", "bits": 1}, 14 + 4),
        ({"scheme": "lut_kmeans", "bits": 4}, 54 + 4 + 2 * 16),
        ({"scheme": "lut_quantile", "bits": 1, "granularity": "per_channel"}, 14 + 4 * (4 + 4)),
        ({"scheme": "binary", "bits": 1}, 14 + 4),
        ({"scheme": "ternary", "bits": 2}, 27 + 4),
        ({"scheme": "apot", "bits": 5}, 68 + 4),
        ({"scheme": "minifloat", "bits": 6, "granularity": "per_channel"}, 81 + 4 * 4),
        ({"scheme": "minifloat", "bits": 6, "granularity": "per_channel", "scaled": False}, 81),
    ],
)
def test_stored_bytes(spec, num_bytes):
    assert stored_bytes((4, 3, 3, 3), QuantSpec(**spec)) == num_bytes
