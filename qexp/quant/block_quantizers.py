"""Schemes whose blocks share a scale: OCP's MX formats, block floating point, NVFP4.

The rows are the blocks (`granularity="per_block"`; `qexp.quant.layout` says along what). A spec of another granularity makes one
block of each of its groups.

MX and block floating point: s = 2^(floor(log2 a) - e), a the block's largest magnitude and 2^e the largest power of two among
the element's numbers; what then lies beyond the largest number, up to nearly 2^(e+1), becomes that number. As the standard has
it; rejected: the next power of two where that would happen, which clips nothing and costs a bit (`pow2_scale` has it).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.quant.affine import Operation
from qexp.quant.float_format import FloatFormat, parse_format
from qexp.quant.float_quantizers import FloatQuantizer
from qexp.quant.minifloat import largest_power, round_to_format
from qexp.quant.quantizer import Params, Rows, column

_MIN_SCALE = 2.0**-127  # E8M0 holds 2^-127 to 2^127
_SCALE_FORMAT = parse_format("e4m3fn")


class Mx(FloatQuantizer):
    """An MX format: elements of a small float under a power of two; one of them is a subclass that names its element.

    Attributes:
        element_name: the element's format.

    Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3.
    """

    element_name: ClassVar[str]

    @classmethod
    def element(cls, spec: QuantSpec) -> FloatFormat:
        """The format of an element."""
        return parse_format(cls.element_name)

    @classmethod
    def fit(cls, rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """Scales: s = 2^(floor(log2 a) - e), at least 2^-127, which a block of zeros gets."""
        largest = torch.maximum(minimum.abs(), maximum.abs())
        scale = largest_power(largest) * 2.0 ** -cls.element(spec).max_exponent
        return {"scale": scale.clamp(min=_MIN_SCALE)}


class Mxfp8E4m3(Mx):
    """`mxfp8_e4m3`."""

    element_name = "e4m3fn"


class Mxfp8E5m2(Mx):
    """`mxfp8_e5m2`."""

    element_name = "e5m2"


class Mxfp6E2m3(Mx):
    """`mxfp6_e2m3`."""

    element_name = "e2m3"


class Mxfp6E3m2(Mx):
    """`mxfp6_e3m2`."""

    element_name = "e3m2"


class Mxfp4(Mx):
    """`mxfp4`."""

    element_name = "e2m1"


class Bfp(Mx):
    """`bfp` and `mxint8`: even steps of 2^-(b-2) from -(2 - 2^-(b-2)) to 2 - 2^-(b-2) under a power of two.

    One bit of exponent and bias 1 are such steps, as subnormal and normal numbers then have one step. The code -2^(b-1) is left
    out, as the standard allows for INT8.
    """

    @classmethod
    def element(cls, spec: QuantSpec) -> FloatFormat:
        """Even steps as a format."""
        return parse_format(f"e1m{spec.bits - 2}b1f")

    @classmethod
    def encode(cls, x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> codes, which even steps have unrounded too."""
        if rounding is not None:
            return super().encode(x, params, spec, rounding)
        limit = cls.element(spec).max_value
        return (x / column(params["scale"])).clamp_(-limit, limit).mul_(2.0 ** (spec.bits - 2))


class Nvfp4(FloatQuantizer):
    """`nvfp4`: e2m1 under a scale of e4m3fn for each block and one of float32 for the tensor.

    t = max|x| / (6 * 448); s_block = e4m3fn(a / 6 / t); s = s_block t

    A block whose scale rounds to 0 becomes 0, and small blocks have subnormal scales. torchao differs there, as it has no scale
    below e4m3fn's smallest normal number, 2^-6, and at exact ties, as it multiplies by 1 / s.

    Source: NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149, appendix B; 448 and 6 are the largest
    numbers of e4m3fn and e2m1.
    """

    @staticmethod
    def element(spec: QuantSpec) -> FloatFormat:
        """e2m1."""
        return parse_format("e2m1")

    @classmethod
    def fit(cls, rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """The scales of blocks, as they are stored and as they apply, and that of the tensor."""
        largest = torch.maximum(minimum.abs(), maximum.abs())
        peak = cls.element(spec).max_value
        tensor_scale = (largest.max().double() / (peak * _SCALE_FORMAT.max_value)).float()
        tensor_scale = tensor_scale.masked_fill(tensor_scale == 0, 1.0)
        block_scale = round_to_format(largest / peak / tensor_scale, _SCALE_FORMAT)
        return {"scale": block_scale * tensor_scale, "block_scale": block_scale, "tensor_scale": tensor_scale}
