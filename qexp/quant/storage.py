"""What a quantized tensor takes in bytes, counted without making it; torch-free, since a plan is."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from qexp.base.types import QuantSpec
from qexp.quant.layout import layout_of
from qexp.quant.scheme_table import SCHEMES


def packed_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of the packed codes: ceil(elements * bits / 8).

    >>> packed_bytes((3, 5), 3)
    6
    """
    return -(-prod(shape) * bits // 8)


def stored_bytes(shape: Sequence[int], spec: QuantSpec) -> int:
    """Bytes of a tensor quantized to codes: packed codes, scales, zero points and codebooks.

    Args:
        shape: of the tensor.
        spec: mode `int`.

    >>> stored_bytes((8, 4), QuantSpec(scheme="lut_kmeans", bits=2, granularity="per_channel"))
    104
    >>> stored_bytes((8, 64), QuantSpec(scheme="nvfp4", bits=4, granularity="per_block", block_size=16))  # 256 + 8 * 4 + 4
    292
    """
    assert spec.mode == "int", spec.mode
    groups, row = layout_of(shape, spec).num_groups, SCHEMES[spec.scheme]
    stored = 0 if "scaled" in row.reads and not spec.scaled else row.group_bytes(spec.bits)  # a scale that is 1 is known
    return packed_bytes(shape, spec.bits) + stored * groups + row.tensor_bytes
