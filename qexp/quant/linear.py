"""The linear map of document 002, its rounding and its inverse, three steps with three names.

`linear_quantize` is that document's code, not its prose: the codes come out *unrounded*. `qexp.quant.rounding` rounds them, and
`linear_dequantize` maps them back to the tensor's range; the document has neither. Zero is not on the grid: it maps to
-2^(b-1) - min (2^b-1) / (max - min), an integer only by accident.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.base.checks import check_bits
from qexp.quant.ranges import check_span, min_max


def linear_quantize(tensor: Tensor, bits: int) -> Tensor:
    """Map the tensor's own range onto [-2^(bits-1), 2^(bits-1) - 1], without rounding.

    code = (x - min) / (max - min) * (2^bits - 1) - 2^(bits-1)

    in this order of operations, so that every float is the document's, bit for bit. As there, the subtraction and the division
    are carried out in the tensor's dtype (pass `tensor.float()` for float32 arithmetic on half precision), the rest in float32.

    Args:
        tensor: any shape.
        bits: 1 to 16.

    Returns:
        float32 codes, same shape.

    Raises:
        UserError: the tensor is empty, constant, holds NaN or infinity, or its range overflows; the document returns NaN.

    Source: document 002, `linear_quantize`.

    >>> linear_quantize(torch.tensor([0.0, 1.0, 3.0]), 2)
    tensor([-2., -1.,  1.])
    """
    check_bits("bits", bits)
    minimum, maximum = min_max(tensor)
    return linear_map(tensor, minimum, linear_span(minimum, maximum), *linear_constants(bits))


def linear_dequantize(
    codes: Tensor, bits: int, minimum: Tensor | float, maximum: Tensor | float, out: Tensor | None = None
) -> Tensor:
    """Invert `linear_quantize` on codes, rounded or not.

    x = code * step + offset,  step = (max - min) / (2^bits - 1),  offset = min + 2^(bits-1) * step

    in float32: `offset` is the value of code 0, and x is within a few units in the last place of max(|min|, |max|).

    Args:
        codes: any shape.
        bits: as quantized.
        minimum: of the tensor that was quantized; a number, or broadcastable to codes.
        maximum: likewise.
        out: where to write; may be `codes`.

    >>> linear_dequantize(torch.tensor([-2.0, -1.0, 1.0]), 2, 0.0, 3.0)
    tensor([0., 1., 3.])
    """
    check_bits("bits", bits)
    minimum, maximum = (torch.as_tensor(end, dtype=torch.float32, device=codes.device) for end in (minimum, maximum))
    return linear_unmap(codes, *linear_inverse(minimum, maximum, bits), out=out)


def linear_constants(bits: int) -> tuple[float, float]:
    """Number of steps, 2^bits - 1, and lowest code, -2^(bits-1)."""
    return 2.0**bits - 1, -(2.0 ** (bits - 1))


def linear_span(minimum: Tensor, maximum: Tensor) -> Tensor:
    """What `linear_map` divides by: max - min, and 1 for a constant channel, all of which then gets the lowest code.

    Raises:
        UserError: all elements are equal, or max - min overflows.
    """
    span = check_span(minimum, maximum)
    return torch.where(span == 0, torch.ones_like(span), span) if span.dim() else span


def linear_inverse(minimum: Tensor, maximum: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step and offset of `linear_dequantize`; of a constant channel 0 and its constant, so that it comes back exactly."""
    levels, lowest = linear_constants(bits)
    span = maximum - minimum
    # Divided by a tensor: by a number, CUDA multiplies with its reciprocal, one unit in the last place off.
    step = span / torch.full_like(span, levels)
    return step, minimum - lowest * step


def linear_map(
    x: Tensor, minimum: Tensor, span: Tensor, levels: Tensor | float, lowest: Tensor | float, out: Tensor | None = None
) -> Tensor:
    """Value -> unrounded code, in the order of `linear_quantize`."""
    unit = torch.div(torch.sub(x, minimum, out=out), span, out=out)
    return torch.add(torch.mul(unit.float(), levels, out=out), lowest, out=out)


def linear_clamp(codes: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """Codes that a range given from outside has put beyond [-2^(bits-1), 2^(bits-1) - 1], brought back to its ends."""
    levels, lowest = linear_constants(bits)
    return torch.clamp(codes, lowest, lowest + levels, out=out)


def linear_unmap(codes: Tensor, step: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
    """Code -> value, in the order of `linear_dequantize`."""
    return torch.add(torch.mul(codes, step, out=out), offset, out=out)
