"""What the range methods do, and the range of a weight.

A method reads one of three things: the ends of each batch (`minmax`, `ema_minmax`), the values themselves or their histogram
(`percentile`, `mse`, `kl`, `aciq`), or the batch norm before the activation (`bn`). All give clipping limits [G], one pair for
each group that has a range of its own, in the order of `qexp.quant.layout`. A group of equal values has nothing to search:
its limits are that value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.config.calibrate import CalibrateSettings, RangeMethodInfo
from qexp.ptq.grid_traits import check_clipped, is_unsigned, shrinks_together
from qexp.ptq.samples import Rows, Sample
from qexp.quant.layout import layout_of
from qexp.quant.scheme_table import SCHEMES

Limits = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class BehindNorm:
    """What lies before an activation point: a batch norm, and maybe an activation function that clamps.

    Args:
        beta: [C], bias of the batch norm.
        gamma: [C], its scale.
        floor: what the activation function clamps to from below; None for none.
        ceiling: what it clamps to from above; None for none.
    """

    beta: Tensor
    gamma: Tensor
    floor: float | None = None
    ceiling: float | None = None


def minmax(ends: Limits, spec: QuantSpec, settings: CalibrateSettings) -> Limits:
    """The smallest minimum and the largest maximum of batches, [T, G] -> [G]."""
    return ends[0].amin(0), ends[1].amax(0)


def ema_minmax(ends: Limits, spec: QuantSpec, settings: CalibrateSettings) -> Limits:
    """Exponential moving averages of the batches' ends: m_0 = x_0, m_t = momentum m_(t-1) + (1 - momentum) x_t; [T, G] -> [G].

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.1; torch's MovingAverageMinMaxObserver, whose averaging_constant is
    1 - momentum.
    """
    averages = []
    for values in ends:
        average = values[0].double()
        for value in values[1:].double():
            average = average + (1 - settings.momentum) * (value - average)
        averages.append(average.float())
    return averages[0], averages[1]


def percentile(sample: Sample, spec: QuantSpec, settings: CalibrateSettings) -> Limits:
    """What holds `settings.percentile` percent, p, of the values.

    Symmetric grids: +- the p-th percentile of |x|. Grids with two ends: the (100 - p)-th and the p-th of x. Unsigned: the p-th of
    x. No further than the values go; where nothing but zero would remain (sparser values than p), the whole range.
    """
    share = settings.percentile / 100
    low, high = sample.minimum, sample.maximum
    if shrinks_together(spec):
        end = sample.magnitudes().quantile(share)
        lower, upper = torch.maximum(-end, low), torch.minimum(end, high)
    elif is_unsigned(spec):
        lower, upper = low, sample.quantile(share)
    else:
        lower, upper = sample.quantile(1 - share), sample.quantile(share)
    nothing = (lower == 0) & (upper == 0) if not is_unsigned(spec) else upper <= 0
    return torch.where(nothing, low, lower), torch.where(nothing, high, upper)


def find_limits(
    method: RangeMethodInfo, values: Limits | Sample | BehindNorm, spec: QuantSpec, settings: CalibrateSettings
) -> Limits:
    """What a method finds.

    Args:
        method: its row.
        values: what it reads: ends [T, G] of batches, a sample of G groups of which one at least has a range, or a batch norm.
        spec: the grid that the limits are for.
        settings: what else it reads.

    Raises:
        UserError: a grid that the method cannot find a range for.
    """
    method.check_grid(SCHEMES[spec.scheme])
    find = cast("Callable[[object, QuantSpec, CalibrateSettings], Limits]", method.load())
    return find(values, spec, settings)


def find_in_sample(method: RangeMethodInfo, sample: Sample, spec: QuantSpec, settings: CalibrateSettings) -> Limits:
    """The limits [G] that a method which reads a sample finds; constant groups keep their value.

    Args:
        method: its row.
        sample: of G groups.
        spec: the grid that the limits are for.
        settings: what the method reads.
    """
    low, high = sample.minimum, sample.maximum
    varied = high > low
    if not varied.any():
        return low, high
    lower, upper = find_limits(method, sample, spec, settings)
    return torch.where(varied, lower, low), torch.where(varied, upper, high)


@torch.no_grad()
def weight_range(weight: Tensor, spec: QuantSpec, settings: CalibrateSettings) -> Limits:
    """Clipping limits of a weight by `settings.weights`, as `quantize_(limits=)` takes them.

    Args:
        weight: any shape and floating dtype.
        spec: its quantizer.
        settings: method and what it reads.

    Returns:
        minimum, maximum float32: 0-d per tensor, else [num_groups].

    Raises:
        UserError: the weight is empty, holds NaN or infinity; the scheme has no range, or none that the method can find.

    >>> spec = QuantSpec(scheme="symmetric_restricted", bits=4)
    >>> weight_range(torch.tensor([-1.0, 0.5, 2.0]), spec, CalibrateSettings())
    (tensor(-1.), tensor(2.))
    """
    check_clipped(spec)
    method = settings.weight_method
    layout = layout_of(weight.shape, spec)
    ranges: list[Limits] = []
    for part in layout.rows(weight.detach().float()):
        rows = Rows.of(part)
        if method.reads == "ends":
            ranges.append(find_limits(method, (rows.minimum[None], rows.maximum[None]), spec, settings))
        else:
            ranges.append(find_in_sample(method, rows, spec, settings))
    low, high = (layout.join([limits[side] for limits in ranges]) for side in (0, 1))
    return (low.reshape(()), high.reshape(())) if spec.granularity == "per_tensor" else (low, high)


def bn(norm: BehindNorm, spec: QuantSpec, settings: CalibrateSettings) -> Limits:
    """The range behind a batch norm, without images: its output has mean beta and standard deviation |gamma| in each channel.

    clamp(beta - n |gamma|, floor, ceiling) .. clamp(beta + n |gamma|, floor, ceiling); per tensor the widest over the channels

    Args:
        norm: and what clamps its output: from below 0 for ReLU, from above 6 for ReLU6.
        spec: of the activation, per tensor or per channel.
        settings: n, its `num_sigmas`.

    Returns:
        minimum, maximum float32: 0-d per tensor, else [C].

    Source: Nagel et al. 2019, arXiv:1906.04721, section 5 (activation range from beta +- n gamma, n = 6).

    >>> spec = QuantSpec(scheme="affine", bits=8)
    >>> bn(BehindNorm(torch.tensor([1.0, -2.0]), torch.tensor([0.5, -0.25]), floor=0.0), spec, CalibrateSettings(num_sigmas=6.0))
    (tensor(0.), tensor(4.))
    """
    spread = settings.num_sigmas * norm.gamma.detach().double().abs()
    ends = [norm.beta.detach().double() + sign * spread for sign in (-1, 1)]
    low, high = (end if norm.floor is norm.ceiling is None else end.clamp(norm.floor, norm.ceiling) for end in ends)
    if spec.granularity == "per_tensor":
        low, high = low.min(), high.max()
    return low.float(), high.float()
