"""What quantizing activations costs at each activation point: its values on images, compared with its grid.

The values are those of the network with quantized weights and float activations, which ranges are calibrated on too, so that
the error of a point is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from qexp.analysis.distributions import ActivationStats, fit_distributions, profile, suggest
from qexp.analysis.measures import DRAWN_BITS, Errors, count_clipped, histogram, spec_of, tensor_profile
from qexp.analysis.profile_results import GridFields, TensorProfile
from qexp.base.types import ActivationRow
from qexp.nn.fake_quant import FakeQuantize, observing
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

    def watch(name: str, values: Tensor) -> None:
        if name in errors:
            errors[name].add(values, quantizers[name](values), _count(values, quantizers[name]))

    with observing(network, watch):
        for batch in images():
            network(batch)
    ordered = sorted(rows, key=lambda row: row.info.order)
    return tuple(
        _profile(row, stats[row.info.name], errors[row.info.name], quantizers[row.info.name], ranges[row.info.name])
        for row in ordered
    )


def _count(values: Tensor, quantizer: FakeQuantize) -> int:
    """Values beyond the grid of an activation point; none where each batch has its own range, which holds all of it."""
    if quantizer.spec.dynamic:
        return 0
    scale, zero_point = (expand(buffer.double(), quantizer.axis, values) for buffer in (quantizer.scale, quantizer.zero_point))
    assert isinstance(scale, Tensor) and isinstance(zero_point, Tensor)  # as what is expanded is
    low, high = (quantizer.quant_min - zero_point) * scale, (quantizer.quant_max - zero_point) * scale
    return count_clipped(values.double(), low, high, scale, scale)


def _profile(row: ActivationRow, stats: ActivationStats, errors: Errors, quantizer: FakeQuantize, ranges: str) -> TensorProfile:
    info, spec = row.info, spec_of(row)
    fits = fit_distributions(stats.sample)
    suggestion = ""
    if not spec.dynamic and spec.granularity == "per_tensor":
        suggested = suggest(stats, fits, spec)
        suggestion = f"{suggested.method}: {suggested.reason}"
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
        distribution=f"{fits[0].name} (KS {fits[0].ks:.3f})" if fits else "",
        suggestion=suggestion,
        histogram=histogram(stats.sample, _levels(quantizer)),
        **_grid(quantizer, errors),
    )


def _grid(quantizer: FakeQuantize, errors: Errors) -> GridFields:
    """Ends and scales of a calibrated activation point, and the share of values beyond it; each batch may have its own grid."""
    if quantizer.spec.dynamic:
        return {"saturation": errors.saturation}
    scale, zero_point = quantizer.scale.double().reshape(-1), quantizer.zero_point.double().reshape(-1)
    low, high = (quantizer.quant_min - zero_point) * scale, (quantizer.quant_max - zero_point) * scale
    return {
        "grid_min": float(low.min()),
        "grid_max": float(high.max()),
        "num_groups": len(scale),
        "scale_min": float(scale.min()),
        "scale_max": float(scale.max()),
        "saturation": errors.saturation,
    }


def _levels(quantizer: FakeQuantize) -> tuple[float, ...]:
    """The levels of the widest grid of an activation point; none where each batch has its own, or there are too many to draw."""
    if quantizer.spec.dynamic or quantizer.spec.bits > DRAWN_BITS:
        return ()
    scale, zero_point = quantizer.scale.double().reshape(-1), quantizer.zero_point.double().reshape(-1)
    low, high = (quantizer.quant_min - zero_point) * scale, (quantizer.quant_max - zero_point) * scale
    widest = int((high - low).argmax())
    codes = torch.arange(quantizer.quant_min, quantizer.quant_max + 1, dtype=torch.float64, device=scale.device)
    return tuple(((codes - zero_point[widest]) * scale[widest]).tolist())
