"""KL: the threshold at which the clipped and coarsened histogram of magnitudes tells most about the whole one.

For the first i of B bins: P is their counts, with everything beyond added to the last; Q is the counts without that, merged into
as many runs as the grid has levels up to the threshold, each run's sum spread evenly over those of its bins that are not empty.
The threshold is the end of the i bins with the least KL(P || Q); of equals the widest. Where the grid has more levels than the
histogram has bins, nothing is merged and the threshold is max|x|.

Source: Migacz 2017, 8-bit inference with TensorRT, GTC; as in NVIDIA's pytorch-quantization, `_compute_amax_entropy`, which
begins at 128 of 2048 bins. Its overwriting of the first bin, full of zeros, is not needed: zeros are counted apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.config.calibrate import CalibrateSettings
from qexp.ptq.grid_traits import is_unsigned, shrinks_together
from qexp.ptq.samples import Rows, Sample

_FIRST = 16  # the narrowest threshold is 1/16 of max|x|
_GROUPS = 1024  # of weights at once: their histograms are far larger than they are


def kl_range(sample: Sample, spec: QuantSpec, settings: CalibrateSettings) -> tuple[Tensor, Tensor]:
    """Clip limits [G]: [-threshold, threshold], and no further than the values go.

    Args:
        sample: at least one group has a range.
        spec: its grid; its granularity is not read.
        settings: `num_bins` of the histogram, on each side of zero, and `num_candidates`, thresholds tried.
    """
    if isinstance(sample, Rows) and len(sample.values) > _GROUPS:
        parts = sample.values.split(_GROUPS)
        ranges = [kl_range(Rows.of(part), spec, settings) for part in parts]
        return torch.cat([low for low, _ in ranges]), torch.cat([high for _, high in ranges])
    histogram = sample.histogram(settings.num_bins)
    bins = histogram.num_bins
    counts = histogram.counts[:, bins:] if is_unsigned(spec) else histogram.magnitudes().counts[:, bins:]
    minimum, maximum = histogram.minimum, histogram.maximum
    span = 2 * histogram.edge
    if not shrinks_together(spec):
        span = maximum.clamp(min=0) - minimum.clamp(max=0) * (not is_unsigned(spec))
    reach = maximum.clamp(min=0) if is_unsigned(spec) else histogram.edge
    # Levels between zero and max|x|; 1 where a group has no range, and its threshold does not matter.
    levels = (2**spec.bits * reach.double() / span.double()).nan_to_num(1, 1, 1).round().clamp(min=1).long()
    threshold = torch.empty_like(histogram.edge)
    for count in levels.unique().tolist():
        chosen = levels == count
        best = best_threshold(counts[chosen].double(), count, settings.num_candidates)
        threshold[chosen] = histogram.edge[chosen] * (best / bins)
    # A threshold is the end of a bin, which may lie a rounding before the value in it.
    return torch.minimum(torch.maximum(-threshold, minimum), threshold), torch.maximum(
        torch.minimum(threshold, maximum), -threshold
    )


def best_threshold(counts: Tensor, levels: int, num_candidates: int) -> Tensor:
    """How many of the first bins lie below the best threshold.

    Args:
        counts: float64 [G, B], of magnitudes.
        levels: of the grid up to the threshold.
        num_candidates: thresholds tried, evenly spaced; all bins are one of them.

    Returns:
        float32 [G], 1 to B.
    """
    bins = counts.shape[1]
    first = min(bins, max(levels, bins // _FIRST))
    candidates = torch.linspace(bins, first, num_candidates).round().long().unique().flip(0).tolist()
    least = torch.full((counts.shape[0],), float("inf"), dtype=torch.float64, device=counts.device)
    best = torch.full_like(least, bins, dtype=torch.float32)
    for number in candidates:
        divergence = _divergence(counts, number, levels)
        better = divergence < least
        least, best = torch.where(better, divergence, least), torch.where(better, float(number), best)
    return best


def _divergence(counts: Tensor, number: int, levels: int) -> Tensor:
    """KL(P || Q) [G] for the first `number` bins; infinite where Q is empty or lacks what P has."""
    head = counts[:, :number]
    run = torch.arange(number, device=counts.device) * levels // number
    sums = head.new_zeros(len(head), levels).index_add_(1, run, head)
    filled = head.new_zeros(len(head), levels).index_add_(1, run, (head > 0).double())
    q = torch.where(head > 0, (sums / filled.clamp(min=1))[:, run], 0.0)
    p = head.clone()
    p[:, -1] += counts[:, number:].sum(1)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1).nan_to_num(float("inf"), float("inf"))
