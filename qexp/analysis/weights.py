"""What quantizing each weight costs: the tensor before and after, compared with its grid."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qexp.analysis.measures import Errors, histogram, shared_fields, spec_of, weight_grid
from qexp.analysis.profile_results import TensorProfile
from qexp.base.progress import track
from qexp.base.types import Plan, PlanRow
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.schemes import Limits


@torch.no_grad()
def profile_weights(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    plan: Plan,
    limits: Mapping[str, Limits],
    *,
    ranges: str,
    sizes: Mapping[str, int],
    size_bytes: int,
) -> tuple[TensorProfile, ...]:
    """One profile for each quantized tensor of a state dict, in the order of the network.

    Args:
        before: the float network as it was quantized (folded, equalized), by name.
        after: its quantized copy.
        plan: of the network.
        limits: of the weights that `calibrate.weights` clipped.
        ranges: name of that method.
        sizes: name -> bytes as stored.
        size_bytes: of the whole state dict.
    """
    rows = sorted((row for row in plan.rows if row.spec is not None), key=lambda row: row.info.order)
    return tuple(
        _profile(
            row,
            before[row.info.name].detach(),
            after[row.info.name].detach(),
            limits.get(row.info.name),
            ranges=ranges,
            size_bytes=sizes[row.info.name],
            size_share=sizes[row.info.name] / size_bytes,
        )
        for row in track(rows, "weight", note=lambda row: row.info.name)
    )


def _profile(
    row: PlanRow,
    source: Tensor,
    copied: Tensor,
    limits: Limits | None,
    *,
    ranges: str,
    size_bytes: int,
    size_share: float,
) -> TensorProfile:
    info, spec = row.info, spec_of(row)
    try:
        grid, note = weight_grid(source, spec, limits), ""
    except ConstantTensorError:
        grid, note = None, "constant, left unquantized"
    errors = Errors()
    errors.add(source, copied, 0 if grid is None else grid.clipped)
    minimum, maximum = (float(end) for end in torch.aminmax(source))
    return TensorProfile(
        **shared_fields(row, errors, grid),
        role=info.role,
        made_by=info.module_type,
        ranges=ranges if spec.mode != "half" else "",
        num_values=source.numel(),
        minimum=minimum,
        maximum=maximum,
        zero_share=float((source == 0).double().mean()),
        loss=errors.noise,
        saturation=None if grid is None else errors.saturation,
        note=note,
        histogram=histogram(source, () if grid is None else grid.levels),
        size_bytes=size_bytes,
        size_share=size_share,
    )
