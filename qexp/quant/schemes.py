"""`quantize_`, which overwrites a tensor with the quantized copy of another, whatever the scheme.

For the schemes with a kernel `quantize_` allocates nothing of the size of the model: it takes the range (one read), then runs the
scheme's few elementwise steps in place over blocks that stay in cache (one read, one write). The steps are those of the public
functions in the same order, so the result is theirs, bit for bit; `qexp.quant.uniform` compiles them where that pays. The others,
and stochastic rounding, whose draws have an order, are encoded and decoded whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qexp.base.errors import UserError, choose
from qexp.base.types import QuantSpec
from qexp.base.user_code import state_of
from qexp.base.user_source import source_hash
from qexp.quant.affine import Operation, rounding_of
from qexp.quant.blocks import in_blocks, memory_order
from qexp.quant.layout import Layout, layout_of
from qexp.quant.linear import linear_constants
from qexp.quant.quantizer import ControlQuantizer, FusedQuantizer, Kernel, KernelParams, Params, Quantizer
from qexp.quant.ranges import check_finite, check_limits, check_not_zero, min_max
from qexp.quant.scheme_table import SCHEMES, SchemeInfo
from qexp.quant.uniform import linear_at_once, row_ranges

QUANTIZER_VERSION = 2  # part of every record's key; raise it when the same spec comes to give other values

Limits = tuple[Tensor, Tensor]


@torch.no_grad()
def quantize_(target: Tensor, source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> Tensor:
    """Overwrite `target` with the quantized copy of `source`, and return it.

    `linear`:     linear_dequantize(R(linear_quantize(x)))
    `linear_raw`: R(linear_quantize(x)), the codes
    `affine`, `symmetric`, `symmetric_restricted`, `unsigned_symmetric`, `pow2_scale`:
                  fake_quantize_affine(x, choose_qparams(min x, max x, scheme=...)); `fixed_point` with fixed_point_qparams
    `scale_factor`: R(clamp(x f, quant_min, quant_max)) / f, f = scale_factors(min x, max x)
    `log2`, `apot`, `quadratic`: the nearest of unit_levels times max|x|
    `lut_quantile`, `lut_kmeans`: the nearest centroid of fit_codebook; `binary`, `ternary`: their means and signs
    `dorefa`:     decode_dorefa(R(encode_dorefa(x))), which lies between -1 and 1 whatever x
    `minifloat`, `mxfp8_e4m3` ... `nvfp4`, `bfp`: s round_to_format(x / s), s of each group or block
    spec.mode `half`: x rounded to fp16, whatever the scheme

    R is `spec.rounding` in mode `int`; in mode `float`, the control, nothing is rounded. Each group of the granularity has its
    own range; one of equal elements (a pruned channel) is reproduced exactly by the linear map, as is one of zeros by the others
    that represent zero. Arithmetic is float32 whatever the dtypes.

    Args:
        target: any floating dtype, strides and device; may be `source`.
        source: likewise, of equal shape.
        spec: scheme, bits, mode, granularity, rounding and what else the scheme reads.
        limits: minimum and maximum to use instead of the source's own, 0-d or [1] per tensor, else [num_groups] in the order of
            `qexp.quant.layout`; what lies outside goes to the grid's end. Only for schemes with a clipping range (`clipped`).

    Raises:
        UserError: the source is empty, holds NaN or infinity, has no range (constant for the linear map, all zero for the others)
            or one that overflows; or the spec asks for what its scheme does not have. `target` is untouched then.
    """
    if target.shape != source.shape:
        raise UserError("target", list(target.shape), allowed=f"the shape of the source, {list(source.shape)}")
    row = check_spec(spec, limits)
    if row is None:
        return _cast_half_(target, source)
    if spec.scheme in ("linear", "linear_raw") and limits is None and spec.granularity in ("per_tensor", "per_channel"):
        rounding, axis = spec.rounding if spec.mode == "int" else None, spec.axis if spec.granularity == "per_channel" else None
        if linear_at_once(source, target, linear_constants(spec.bits), rounding, axis, raw=spec.scheme == "linear_raw"):
            return target
    fitted, quantizer = _fitted(source, spec, limits, row), quantizer_of(spec)
    # Stochastic rounding draws in the order of the rows, which encode must share.
    if not issubclass(quantizer, FusedQuantizer) or (spec.rounding == "stochastic" and spec.mode == "int"):
        return target.copy_(fitted.layout.fold(_copy_rows(quantizer, fitted, spec, source)))
    kernel, params = quantizer.kernel(fitted.params, spec, _rounding(spec), limits is not None)
    layout = fitted.layout
    if spec.granularity in ("per_tensor", "per_channel"):
        in_blocks(kernel, source, target, params, layout.axis if spec.granularity == "per_channel" and source.dim() else None)
        return target
    return in_groups(kernel, params, layout, source, target)


def in_groups(kernel: Kernel, params: KernelParams, layout: Layout, source: Tensor, target: Tensor) -> Tensor:
    """Run a kernel over the groups of a layout, each with its parameters, until `target` is filled; returns it.

    Args:
        kernel: of a `FusedQuantizer`.
        params: its parameters, 0-d or [num_groups].
        layout: of the source.
        source: any floating dtype and strides.
        target: likewise, of equal shape; may be source.
    """
    rows = layout.rows(source)
    in_place = not layout.tail and layout.order is None and target.is_contiguous()
    outs = [target.view(-1, layout.group)] if in_place else [torch.empty_like(part, dtype=torch.float32) for part in rows]
    cuts = [layout.cut(param) if isinstance(param, Tensor) else [param] * len(rows) for param in params]
    for part, out, *part_params in zip(rows, outs, *cuts, strict=True):
        in_blocks(kernel, part, out, part_params, 0)
    return target if in_place else target.copy_(layout.fold(outs))


@dataclass(frozen=True)
class Fitted:
    """The parameters of one tensor's grid.

    Args:
        layout: the groups that the parameters belong to.
        params: name -> 0-d, [num_groups] or [num_groups, levels].
    """

    layout: Layout
    params: Params

    def parts(self) -> list[Params]:
        """The parameters of each part of `layout.rows`."""
        cuts = {name: self.layout.cut(param) for name, param in self.params.items()}
        return [{name: cut[number] for name, cut in cuts.items()} for number in range(1 + bool(self.layout.tail))]


@torch.no_grad()
def fit(source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> Fitted:
    """The parameters that `quantize_` uses, for modes `int` and `float`; arguments and errors as there."""
    row = check_spec(spec, limits)
    assert row is not None, "a cast has no parameters"
    return _fitted(source, spec, limits, row)


def _fitted(source: Tensor, spec: QuantSpec, limits: Limits | None, row: SchemeInfo) -> Fitted:
    """`fit` of a checked spec."""
    quantizer = quantizer_of(spec)
    layout = layout_of(source.shape, spec)
    whole = spec.granularity in ("per_tensor", "per_channel") or not source.numel()
    if whole:
        minimum, maximum = _whole_range(source, layout.axis if spec.granularity == "per_channel" and source.dim() else None)
    else:
        ends = [min_max(part, 0) for part in layout.rows(source)]
        minimum, maximum = (layout.join([pair[side] for pair in ends]) for side in (0, 1))
    minimum, maximum = minimum.float(), maximum.float()
    if limits is not None:
        minimum, maximum = check_limits(limits, layout.num_groups, source)
    if row.undefined_on == "zero":
        check_not_zero(minimum, maximum)
    if issubclass(quantizer, FusedQuantizer):
        return Fitted(layout, quantizer.fit((), minimum, maximum, spec))
    parts = [
        quantizer.fit((rows,), low.reshape(-1), high.reshape(-1), spec)
        for rows, low, high in zip(layout.rows(source.float()), layout.cut(minimum), layout.cut(maximum), strict=True)
    ]
    return Fitted(layout, {name: layout.join([params[name] for params in parts]) for name in parts[0]})


def _whole_range(source: Tensor, axis: int | None) -> Limits:
    """`min_max`, of channels in one pass where the compiled kernel is there."""
    order = memory_order(source) if axis is not None and source.dtype == torch.float32 else None
    ends = row_ranges(source.permute(order)) if order is not None and order[0] == axis else None
    if ends is None:
        return min_max(source, axis)
    check_finite(*ends)
    return ends


def encode_rows(source: Tensor, spec: QuantSpec, fitted: Fitted) -> list[Tensor]:
    """The codes of each part of `layout.rows`, float32."""
    quantizer, rounding = quantizer_of(spec), _rounding(spec)
    rows = fitted.layout.rows(source.float())
    return [quantizer.encode(part, params, spec, rounding) for part, params in zip(rows, fitted.parts(), strict=True)]


def decode_rows(codes: list[Tensor], spec: QuantSpec, fitted: Fitted) -> list[Tensor]:
    """The values of each part."""
    quantizer = quantizer_of(spec)
    return [quantizer.decode(part, params, spec) for part, params in zip(codes, fitted.parts(), strict=True)]


def _copy_rows(quantizer: type[Quantizer], fitted: Fitted, spec: QuantSpec, source: Tensor) -> list[Tensor]:
    """The copy of each part, without a kernel."""
    if spec.mode == "int":
        return decode_rows(encode_rows(source, spec, fitted), spec, fitted)
    assert issubclass(quantizer, ControlQuantizer), spec.scheme
    rows = fitted.layout.rows(source.float())
    return [quantizer.control(part, params, spec) for part, params in zip(rows, fitted.parts(), strict=True)]


def quantizer_of(spec: QuantSpec) -> type[Quantizer]:
    """The class of a spec that has codes."""
    quantizer = SCHEMES.load(spec.scheme)
    assert isinstance(quantizer, type) and issubclass(quantizer, Quantizer), quantizer
    return quantizer


def check_spec(spec: QuantSpec, limits: Limits | None = None) -> SchemeInfo | None:
    """The row of a spec's scheme, None for the cast to fp16; UserError where the spec asks for what its scheme does not have."""
    choose("mode", spec.mode, ("int", "float", "half"))
    row = None if spec.mode == "half" else SCHEMES.choose(spec.scheme, key="quant.name")
    if row is not None:
        row.check_width(spec.bits)
        row.check_control(spec.mode, spec.bits)
        row.check_rounding(spec.rounding, spec.level)
        row.codes_of(spec)  # which has no format of another width
        if spec.source and not _is_unchanged(spec.scheme, spec.source, state_of(spec.scheme)):
            remedy = "Its numbers would be stored as those of the file as it was. Give the command again."
            raise UserError("quant.factory", spec.scheme, allowed="a file that does not change while it is used", remedy=remedy)
    if limits is not None and (row is None or not row.takes_range(spec.scaled)):
        where, names = "half" if row is None else row.name, SCHEMES.names_where(lambda row: row.clipped)
        raise UserError("limits", "given", allowed=names, remedy=f"{where} has no clipping range.")
    return row


@lru_cache(maxsize=64)
def _is_unchanged(scheme: str, source: str, state: tuple[object, ...]) -> bool:
    """True where a user's scheme is what it was when the plan was made; `state` asks again when the file is touched."""
    return source_hash(scheme) == source


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
    rounding = rounding_of(spec.rounding, spec.rounding_seed)
    return rounding if spec.mode == "int" else None
