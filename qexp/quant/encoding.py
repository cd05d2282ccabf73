"""A tensor as integer codes and what maps them back: what is packed, stored and exported."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.packing import pack, unpack
from qexp.quant.quantizer import Params
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import Fitted, Limits, check_spec, decode_rows, encode_rows, fit


@dataclass(frozen=True)
class Encoded:
    """A quantized tensor.

    Args:
        codes: int32, of the tensor's shape; in `code_range` of the scheme.
        fitted: its groups, and its parameters by name, each 0-d, [num_groups] or [num_groups, levels]: `scale` and `zero_point`
            of the affine grids, `scale` and `offset` of the linear map (with the `minimum` and `span` they come from), `factor`
            of `scale_factor`, `scale` and `codebook` (fp16, relative to the scale) of the codebooks, `scale` of the others, with
            the `block_scale` and `tensor_scale` that `nvfp4` stores.
        spec: how it was quantized.
    """

    codes: Tensor
    fitted: Fitted
    spec: QuantSpec

    @property
    def params(self) -> Params:
        """The parameters by name."""
        return self.fitted.params

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code that the scheme has; the infinities and NaN of an unscaled format lie beyond."""
        return SCHEMES[self.spec.scheme].codes_of(self.spec)

    @property
    def signed(self) -> bool:
        """True where codes may be negative."""
        return self.code_range[0] < 0

    def pack(self) -> Tensor:
        """The codes as bytes, uint8 [packed_bytes(shape, bits)]."""
        return pack(self.codes, self.spec.bits, signed=self.signed)

    def unpack(self, data: Tensor) -> Encoded:
        """The same tensor with the codes that `pack` gave."""
        codes = unpack(data, self.spec.bits, self.codes.shape, signed=self.signed)
        return Encoded(codes, self.fitted, self.spec)


@torch.no_grad()
def encode(source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> Encoded:
    """Values -> integer codes and the parameters that map them back.

    Args:
        source: any floating dtype and strides.
        spec: mode `int`.
        limits: as for `quantize_`.

    Raises:
        UserError: as `quantize_`; also for modes without codes.

    >>> encode(torch.tensor([-1.0, 0.0, 2.0]), QuantSpec(scheme="affine", bits=2)).codes
    tensor([-2, -1,  1], dtype=torch.int32)
    """
    if check_spec(spec, limits) is None or spec.mode != "int":
        raise UserError("mode", spec.mode, allowed="int", remedy="Nothing else has integer codes.")
    fitted = fit(source, spec, limits)
    codes = fitted.layout.fold(encode_rows(source, spec, fitted))
    return Encoded(codes.to(torch.int32), fitted, spec)


@torch.no_grad()
def decode(encoded: Encoded) -> Tensor:
    """Integer codes -> float32 values, equal to what `quantize_` writes; only a negative zero comes back as zero.

    >>> decode(encode(torch.tensor([-1.0, 0.0, 2.0]), QuantSpec(scheme="affine", bits=2)))
    tensor([-1.,  0.,  2.])
    """
    rows = encoded.fitted.layout.rows(encoded.codes.float())
    return encoded.fitted.layout.fold(decode_rows(rows, encoded.spec, encoded.fitted))
