"""What a quantized tensor takes in bytes, counted without making it; torch-free, since a plan is."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from qexp.base.types import QuantSpec
from qexp.quant.layout import layout_of

_FLOAT_BYTES = 4
_CENTROID_BYTES = 2  # a codebook is stored in fp16, relative to a float32 scale
# Bytes beside the codes, for each group: a scale, and a zero point or the other end of the range, four bytes each.
_GROUP_BYTES = {
    "linear": 2 * _FLOAT_BYTES,
    "linear_raw": 2 * _FLOAT_BYTES,
    "affine": 2 * _FLOAT_BYTES,
    "pow2_scale": 1,  # an exponent
    "fixed_point": 0,  # the format is known
    "dorefa": 0,  # its values lie between -1 and 1; at one bit they have a scale
}


def packed_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of the packed codes: ceil(elements * bits / 8).

    >>> packed_bytes((3, 5), 3)
    6
    """
    return -(-prod(shape) * bits // 8)


def stored_bytes(shape: Sequence[int], spec: QuantSpec) -> int:
    """Bytes of a tensor quantized to integer codes: packed codes, scales, zero points and codebooks.

    Args:
        shape: of the tensor.
        spec: mode `int`.

    >>> stored_bytes((8, 4), QuantSpec(scheme="lut_kmeans", bits=2, granularity="per_channel"))
    104
    """
    assert spec.mode == "int", spec.mode
    num_bytes = _GROUP_BYTES.get(spec.scheme, _FLOAT_BYTES)
    if spec.scheme == "dorefa" and spec.bits == 1:
        num_bytes = _FLOAT_BYTES
    if spec.scheme.startswith("lut_"):
        num_bytes += _CENTROID_BYTES * 2**spec.bits
    return packed_bytes(shape, spec.bits) + num_bytes * layout_of(shape, spec).num_groups
