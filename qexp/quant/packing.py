"""Integer codes as bytes, at any width from 1 to 16 bits.

Little-endian bit order: the codes follow each other without gaps in one stream of bits, element i in bits i*b to i*b + b - 1,
lowest bit first; bit k of the stream is bit k % 8 of byte k // 8. The last byte is filled with zeros. At 4 bits the first element
is the low nibble, and at 2 and 4 bits the bytes are those of ONNX's packed types. Negative codes are two's complement in b bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from qexp.base.checks import check_bits
from qexp.base.errors import UserError
from qexp.quant.storage import packed_bytes

_STRIDE = 8  # that many codes of b bits fill exactly b bytes


def pack(codes: Tensor, bits: int, *, signed: bool) -> Tensor:
    """Codes -> bytes.

    Args:
        codes: any shape, integers; taken in C order.
        bits: 1 to 16.
        signed: codes from -2^(bits-1) to 2^(bits-1) - 1, else from 0 to 2^bits - 1.

    Returns:
        uint8 [packed_bytes(codes.shape, bits)].

    Raises:
        UserError: bits out of range, no integers, or a code that the width does not hold.

    >>> pack(torch.tensor([1, -2, 3]), 4, signed=True).tolist()
    [225, 3]
    """
    check_bits("bits", bits)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise UserError("codes", codes.dtype, allowed="an integer dtype")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    flat = codes.reshape(-1).to(torch.int32)
    if flat.numel() and not (low <= int(codes.min()) and int(codes.max()) <= high):
        raise UserError("codes", f"{int(codes.min())} to {int(codes.max())}", allowed=f"what {bits} bits hold, {low} to {high}")
    rows = torch.nn.functional.pad(flat, (0, -flat.numel() % _STRIDE)).reshape(-1, _STRIDE) & (2**bits - 1)
    stream = torch.zeros(rows.shape[0], bits, dtype=torch.int32, device=codes.device)
    for column, byte, shift in _positions(bits):
        part = rows[:, column]
        stream[:, byte] |= part << shift if shift >= 0 else part >> -shift
    return (stream & 255).to(torch.uint8).reshape(-1)[: packed_bytes(codes.shape, bits)]


def unpack(data: Tensor, bits: int, shape: Sequence[int], *, signed: bool) -> Tensor:
    """Bytes -> codes, the inverse of `pack`.

    Args:
        data: uint8 [packed_bytes(shape, bits)].
        bits: as packed.
        shape: of the codes.
        signed: as packed.

    Returns:
        int32 codes of that shape.

    Raises:
        UserError: bits out of range, or as many bytes as no such tensor has.

    >>> unpack(torch.tensor([225, 3], dtype=torch.uint8), 4, (3,), signed=True)
    tensor([ 1, -2,  3], dtype=torch.int32)
    """
    check_bits("bits", bits)
    if data.dtype != torch.uint8 or data.shape != (packed_bytes(shape, bits),):
        given = f"{data.dtype} {list(data.shape)}"
        raise UserError("data", given, allowed=f"torch.uint8 [{packed_bytes(shape, bits)}] for shape {list(shape)}")
    stream = torch.nn.functional.pad(data.to(torch.int32), (0, -data.numel() % bits)).reshape(-1, bits)
    rows = torch.zeros(stream.shape[0], _STRIDE, dtype=torch.int32, device=data.device)
    for column, byte, shift in _positions(bits):
        part = stream[:, byte]
        rows[:, column] |= part >> shift if shift >= 0 else part << -shift
    rows &= 2**bits - 1
    if signed:
        rows -= (rows >> (bits - 1)) << bits
    return rows.reshape(-1)[: prod(shape)].reshape(tuple(shape))


def _positions(bits: int) -> list[tuple[int, int, int]]:
    """Which codes lie in which bytes, of each run of 8 codes: (code, byte, bits to shift the code left, negative for right)."""
    positions = []
    for column in range(_STRIDE):
        first, last = column * bits, column * bits + bits - 1
        positions += [(column, byte, first - 8 * byte) for byte in range(first // 8, last // 8 + 1)]
    return positions
