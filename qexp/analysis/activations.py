"""What quantizing activations costs at each activation point: its values on images, compared with its grid.

The values are those of the network with quantized weights and float activations, which ranges are calibrated on too, so that
the error of a point is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from qexp.analysis.distributions import ActivationStats, fit_distributions, profile, suggest
from qexp.analysis.measures import DRAWN_BITS, Errors, Grid, count_clipped, histogram, shared_fields, spec_of
from qexp.analysis.profile_results import TensorProfile
from qexp.base.types import ActivationRow
from qexp.nn.fake_quant import observing
from qexp.nn.fake_quantize import FakeQuantize
from qexp.quant.affine import expand


@torch.no_grad()
def profile_activations(
    network: nn.Module,
    images: Callable[[], Iterable[Tensor]],
    rows: Iterable[ActivationRow],
    quantizers: Mapping[str, FakeQuantize],
    ranges: Mapping[str, str],
) -> tuple[TensorProfile, ...]:
    """One profile for each quantized activation point, in the order of the network; two passes over the images.

    Args:
        network: of `qexp.nn.fake_quant.observed`, in eval mode.
        images: gives the same batches [N, C, H, W] anew at each call, on the network's device.
        rows: of the plan.
        quantizers: name -> its calibrated module.
        ranges: name -> method that found its range.
    """
    rows = [row for row in rows if row.spec is not None]
    stats = profile(network, images())
    errors = {row.info.name: Errors() for row in rows}
    grids = {name: _grid(quantizers[name]) for name in errors}

    def watch(name: str, values: Tensor) -> None:
        if name in errors:
            errors[name].add(values, quantizers[name](values), _count(values, quantizers[name]))

    with observing(network, watch):
        for batch in images():
            network(batch)
    ordered = sorted(rows, key=lambda row: row.info.order)
    return tuple(
        _profile(row, stats[row.info.name], errors[row.info.name], grids[row.info.name], ranges[row.info.name]) for row in ordered
    )


def _grid(quantizer: FakeQuantize) -> Grid | None:
    """The grids of a calibrated activation point; None where each batch has its own.

    Levels are those of the widest, and none where there are too many to draw.
    """
    if quantizer.spec.dynamic:
        return None
    scale = quantizer.scale.double().reshape(-1)
    low, high = quantizer.decode(torch.tensor([quantizer.quant_min, quantizer.quant_max], device=scale.device)).unbind(1)
    levels: tuple[float, ...] = ()
    if quantizer.spec.bits <= DRAWN_BITS:
        codes = torch.arange(quantizer.quant_min, quantizer.quant_max + 1, device=scale.device)
        levels = tuple(quantizer.decode(codes)[int((high - low).argmax())].tolist())
    return Grid(low, high, scale, levels)


def _count(values: Tensor, quantizer: FakeQuantize) -> int:
    """Values beyond the grid of an activation point; none where each batch has its own range, which holds all of it."""
    if quantizer.spec.dynamic:
        return 0
    low, high = quantizer.quant_min, quantizer.quant_max
    ends = quantizer.decode(torch.tensor([low, low + 1, high - 1, high], device=values.device))
    parts = (ends[:, 0], ends[:, 3], ends[:, 1] - ends[:, 0], ends[:, 3] - ends[:, 2])
    return count_clipped(values.double(), *(expand(part, quantizer.axis, values) for part in parts))


def _profile(row: ActivationRow, stats: ActivationStats, errors: Errors, grid: Grid | None, ranges: str) -> TensorProfile:
    info, spec = row.info, spec_of(row)
    fits = fit_distributions(stats.sample)
    suggestion = ""
    if not spec.dynamic and spec.granularity == "per_tensor":
        suggested = suggest(stats, fits, spec)
        suggestion = f"{suggested.method}: {suggested.reason}"
    return TensorProfile(
        **shared_fields(row, errors, grid),
        role="activation",
        made_by=info.operator,
        ranges=ranges,
        num_values=stats.n,
        minimum=stats.minimum,
        maximum=stats.maximum,
        zero_share=stats.zero_share,
        distribution=f"{fits[0].name} (KS {fits[0].ks:.3f})" if fits else "",
        suggestion=suggestion,
        saturation=errors.saturation,
        histogram=histogram(stats.sample, () if grid is None else grid.levels),
    )
