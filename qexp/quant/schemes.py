"""The quantizers by name, and `quantize_`, which overwrites a tensor with the quantized copy of another.

`quantize_` allocates nothing of the size of the model: it takes the range (one read), then runs the scheme's few elementwise
steps in place over blocks that stay in cache (one read, one write). The steps are those of the public functions in the same
order, so the result is theirs, bit for bit. Rejected: a compiled kernel, which is faster still but needs a compiler where a sweep
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qexp.base.checks import check_bits
from qexp.base.errors import UserError, choose
from qexp.base.nouns import QuantSpec
from qexp.quant.affine import Operation, fake_quantize_steps, rounding_of, scaling, step_limits
from qexp.quant.blocks import in_blocks
from qexp.quant.linear import linear_constants, linear_inverse, linear_map, linear_span, linear_unmap
from qexp.quant.qparams import choose_qparams
from qexp.quant.ranges import min_max

QUANTIZER_VERSION = 1  # part of every record's key; raise it when the same spec comes to give other values

Kernel = Callable[..., None]  # (x, out, *params): float32 blocks, params broadcast along the channels


@dataclass(frozen=True)
class Scheme:
    """What a reader and a policy may ask of a quantizer, and how it is made.

    Args:
        zero_representable: 0 maps to 0 exactly.
        needs_range: undefined on a constant tensor, whatever the constant.
        dequantizes: the copy holds values; otherwise the codes themselves.
        prepare: (minimum, maximum, spec) -> kernel and the tensors it takes; None for the cast to fp16.
    """

    zero_representable: bool
    needs_range: bool
    dequantizes: bool = True
    prepare: Callable[[Tensor, Tensor, QuantSpec], tuple[Kernel, tuple[Tensor | float, ...]]] | None = None


def _prepare_linear(minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> tuple[Kernel, tuple[Tensor | float, ...]]:
    """linear_quantize, rounding, linear_dequantize; `linear_raw` leaves out the last."""
    span, rounding, raw = linear_span(minimum, maximum), _rounding(spec), spec.scheme == "linear_raw"
    # 0-d tensors: torch would wrap Python numbers anew in every call
    levels, lowest = _constant_tensors(spec.bits)

    def kernel(x: Tensor, out: Tensor, minimum: Tensor, span: Tensor, step: Tensor, offset: Tensor) -> None:
        linear_map(x, minimum, span, levels, lowest, out=out)
        if rounding is not None:
            rounding(out, out=out)
        if not raw:
            linear_unmap(out, step, offset, out=out)

    return kernel, (minimum, span, *linear_inverse(minimum, maximum, spec.bits))


@cache
def _constant_tensors(bits: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(value, device="cpu") for value in linear_constants(bits))


def _prepare_affine(minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> tuple[Kernel, tuple[Tensor | float, ...]]:
    """fake_quantize_affine, with scale and zero point from `choose_qparams`."""
    qparams = choose_qparams(minimum, maximum, spec.bits, symmetric=spec.scheme == "symmetric")
    operation, operand = scaling(qparams.scale, spec.arithmetic)
    rounding = _rounding(spec)

    def kernel(x: Tensor, out: Tensor, operand: Tensor, low: Tensor | float, high: Tensor | float, scale: Tensor) -> None:
        fake_quantize_steps(x, operation, operand, rounding, low, high, scale, out=out)

    return kernel, (operand, *step_limits(qparams), qparams.scale)


SCHEMES: dict[str, Scheme] = {
    "linear": Scheme(zero_representable=False, needs_range=True, prepare=_prepare_linear),
    "linear_raw": Scheme(zero_representable=False, needs_range=True, dequantizes=False, prepare=_prepare_linear),
    "affine": Scheme(zero_representable=True, needs_range=False, prepare=_prepare_affine),
    "symmetric": Scheme(zero_representable=True, needs_range=False, prepare=_prepare_affine),
    "half": Scheme(zero_representable=True, needs_range=False),
}


@torch.no_grad()
def quantize_(target: Tensor, source: Tensor, spec: QuantSpec) -> Tensor:
    """Overwrite `target` with the quantized copy of `source`, and return it.

    `linear`:     linear_dequantize(R(linear_quantize(x)))
    `linear_raw`: R(linear_quantize(x)), the codes
    `affine`, `symmetric`: fake_quantize_affine(x, choose_qparams(min x, max x))
    `half`, or spec.mode `half`: x rounded to fp16

    R is `spec.rounding` in mode `int`; in mode `float`, the control, nothing is rounded. Per channel, each index along
    `spec.axis` has its own range; a channel of equal elements (a pruned one) is reproduced exactly by the linear map, as is one
    of zeros by the others. Arithmetic is float32 whatever the dtypes.

    Args:
        target: any floating dtype, strides and device; may be `source`.
        source: likewise, of equal shape.
        spec: scheme, bits, mode, granularity and axis, rounding, arithmetic.

    Raises:
        UserError: the source is empty, holds NaN or infinity, has no range (constant for the linear map, all zero for the others)
            or one that overflows; or the spec asks for what its scheme does not have. `target` is untouched then.
    """
    if target.shape != source.shape:
        raise UserError("target", list(target.shape), allowed=f"the shape of the source, {list(source.shape)}")
    scheme = SCHEMES[choose("quant.name", spec.scheme, SCHEMES)]
    choose("mode", spec.mode, ("int", "float", "half"))
    if scheme.prepare is None or spec.mode == "half":
        return _cast_half_(target, source)
    check_bits("bits", spec.bits)
    choose("quant.weight.granularity", spec.granularity, ("per_tensor", "per_channel"))
    axis = spec.axis if spec.granularity == "per_channel" and source.dim() else None
    if axis is not None and not -source.dim() <= axis < source.dim():
        raise UserError("axis", axis, allowed=f"an axis of a tensor of shape {list(source.shape)}")
    minimum, maximum = (end.float() for end in min_max(source, axis))
    kernel, params = scheme.prepare(minimum, maximum, spec)
    in_blocks(kernel, source, target, params, axis)
    return target


def _cast_half_(target: Tensor, source: Tensor) -> Tensor:
    """Overwrite `target` with `source` rounded to fp16; raise where fp16 does not hold it."""
    minimum, maximum = min_max(source)
    limit = torch.finfo(torch.float16).max
    if float(maximum.half()) > limit or float(minimum.half()) < -limit:
        raise UserError(
            "tensor", f"{float(minimum):g} to {float(maximum):g}", allowed=f"what fp16 holds, -{limit:g} to {limit:g}"
        )
    return target.copy_(source if target.dtype == torch.float16 else source.half())


def _rounding(spec: QuantSpec) -> Operation | None:
    """The rounding of a spec; None for the control, which does not round."""
    rounding = rounding_of(spec.rounding)
    return rounding if spec.mode == "int" else None
