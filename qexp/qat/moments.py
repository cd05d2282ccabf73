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
        minimum, maximum: the range, clipped as the calibration's method finds best.
        mean_abs: E|x|.
        mean, std: of a weight.
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
    """Of a weight, per tensor (axis None) or along its channels."""
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
    """Place -> (E|x|, max|x|) over all values that pass it, 0-d.

    Args:
        model: of `qexp.nn.fake_quant.observed`; its modes are as before afterwards.
        batches: calibration images.
    """
    seen: dict[str, list[float]] = {}

    def watch(name: str, values: Tensor) -> None:
        found, size = seen.setdefault(name, [0.0, 0, 0.0]), values.abs()
        found[0] += float(size.sum(dtype=torch.float64))
        found[1] += size.numel()
        found[2] = max(found[2], float(size.max()))

    with evaluating(model), observing(model, watch):
        for batch in batches:
            model(batch.images)
    return {name: (torch.tensor(total / count), torch.tensor(largest)) for name, (total, count, largest) in seen.items()}
