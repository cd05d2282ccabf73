"""What quantizing activations costs at each place: values seen on images, held against the grid of the place.

The values are those of the network with quantized weights and float activations, on which ranges are found too, so that each
place's error is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qexp.analysis.distributions import ActivationStats, fit_distributions, profile, suggest
from qexp.analysis.measures import DRAWN_BITS, Errors, count_clipped, histogram, tensor_profile
from qexp.analysis.results import TensorProfile
from qexp.base.types import ActivationRow
from qexp.nn.fake_quant import FakeQuantize, observing
from qexp.quant.affine import expand


@torch.no_grad()
def profile_activations(
    network: nn.Module,
    images: Callable[[], Iterable[Tensor]],
    rows: Iterable[ActivationRow],
    places: Mapping[str, FakeQuantize],
    ranges: Mapping[str, str],
) -> tuple[TensorProfile, ...]:
    """One profile for each quantized place, in the order of the network; two passes over the images.

    Args:
        network: of `qexp.nn.fake_quant.observed`, in eval mode.
        images: gives the same batches [N, C, H, W] anew at each call, on the network's device.
        rows: of the plan. places: name -> its calibrated module. ranges: name -> method that found its range.
    """
    rows = [row for row in rows if row.spec is not None]
    stats = profile(network, images())
    errors = {row.info.name: Errors() for row in rows}

    def watch(name: str, values: Tensor) -> None:
        if name in errors:
            errors[name].add(values, places[name](values), _count(values, places[name]))

    with observing(network, watch):
        for batch in images():
            network(batch)
    ordered = sorted(rows, key=lambda row: row.info.order)
    return tuple(
        _profile(row, stats[row.info.name], errors[row.info.name], places[row.info.name], ranges[row.info.name])
        for row in ordered
    )


def _count(values: Tensor, place: FakeQuantize) -> int:
    """Values beyond the grid of a place; none where each batch has its own range, which holds all of it."""
    if place.spec.dynamic:
        return 0
    scale, zero_point = (expand(each.double(), place.axis, values) for each in (place.scale, place.zero_point))
    low, high = (place.quant_min - zero_point) * scale, (place.quant_max - zero_point) * scale
    return count_clipped(values.double(), low, high, scale, scale)


def _profile(row: ActivationRow, stats: ActivationStats, errors: Errors, place: FakeQuantize, ranges: str) -> TensorProfile:
    info, spec = row.info, row.spec
    fits = fit_distributions(stats.sample)
    suggestion = ""
    if not spec.dynamic and spec.granularity == "per_tensor":
        found = suggest(stats, fits, spec)
        suggestion = f"{found.method}: {found.reason}"
    grid = _grid(place)
    return tensor_profile(
        row,
        errors,
        role="activation",
        made_by=info.operator,
        ranges=ranges,
        num_values=stats.n,
        minimum=stats.minimum,
        maximum=stats.maximum,
        zero_share=stats.zero_share,
        saturation=errors.saturation,
        distribution=f"{fits[0].name} (KS {fits[0].ks:.3f})" if fits else "",
        suggestion=suggestion,
        histogram=histogram(stats.sample, grid.pop("levels", ())),
        **grid,
    )


def _grid(place: FakeQuantize) -> dict[str, Any]:
    """Ends, scales and levels of a calibrated place; nothing where each batch has its own."""
    if place.spec.dynamic:
        return {}
    scale, zero_point = place.scale.double().reshape(-1), place.zero_point.double().reshape(-1)
    low, high = (place.quant_min - zero_point) * scale, (place.quant_max - zero_point) * scale
    levels: tuple[float, ...] = ()
    if place.spec.bits <= DRAWN_BITS:
        widest = int((high - low).argmax())
        codes = torch.arange(place.quant_min, place.quant_max + 1, dtype=torch.float64, device=scale.device)
        levels = tuple(((codes - zero_point[widest]) * scale[widest]).tolist())
    return {
        "grid_min": float(low.min()),
        "grid_max": float(high.max()),
        "num_groups": len(scale),
        "scale_min": float(scale.min()),
        "scale_max": float(scale.max()),
        "levels": levels,
    }
