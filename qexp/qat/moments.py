"""What quantizers begin from: moments and range of a weight, or of an activation over calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.types import Batch
from qexp.nn.fake_quant import observing
from qexp.nn.graph import evaluating
from qexp.quant.ranges import min_max


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Float32, 0-d or [channels].

    Args:
        minimum: lower end of the range, clipped as the calibration's method finds best.
        maximum: its upper end.
        mean_abs: E|x|.
        mean: of a weight.
        std: of a weight, its standard deviation.
        three_sigma: a weight's first step size covers three standard deviations, as LSQ+ has it.
        ranged: it covers the range.
    """

    minimum: Tensor
    maximum: Tensor
    mean_abs: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    three_sigma: bool = False
    ranged: bool = False


@torch.no_grad()
def weight_moments(weight: Tensor, axis: int | None, *, three_sigma: bool) -> Moments:
    """Moments and range of a weight.

    Args:
        weight: any floating dtype.
        axis: channel axis; None per tensor.
        three_sigma: as for `Moments`.
    """
    low, high = min_max(weight, axis)
    rows = weight.detach().float()
    rows = rows.flatten().unsqueeze(0) if axis is None else rows.movedim(axis, 0).flatten(1)
    shape = low.shape
    return Moments(
        minimum=low.float(),
        maximum=high.float(),
        mean_abs=rows.abs().mean(1).reshape(shape),
        mean=rows.mean(1).reshape(shape),
        std=rows.std(1, unbiased=False).reshape(shape),
        three_sigma=three_sigma,
    )


@torch.no_grad()
def magnitudes(model: nn.Module, batches: Iterable[Batch]) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Activation point -> (E|x|, max|x|) over all values that pass it, 0-d.

    Args:
        model: of `qexp.nn.fake_quant.observed`; its modes are as before afterwards.
        batches: calibration images.
    """
    sums: dict[str, tuple[float, int, float]] = {}  # total, count, largest

    def watch(name: str, values: Tensor) -> None:
        total, count, largest = sums.get(name, (0.0, 0, 0.0))
        magnitude = values.abs()
        total += float(magnitude.sum(dtype=torch.float64))
        sums[name] = total, count + magnitude.numel(), max(largest, float(magnitude.max()))

    with evaluating(model), observing(model, watch):
        for batch in batches:
            model(batch.images)
    return {name: (torch.tensor(total / count), torch.tensor(largest)) for name, (total, count, largest) in sums.items()}
