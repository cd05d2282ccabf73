"""ACIQ: the clip that a distribution's formula gives, without a search.

The error of a grid of step kappa * clip is rounding inside and clipping outside, (kappa clip)^2 / 12 + E[max(|x| - clip, 0)^2],
for a symmetric density of scale 1 least at clip = t with

    laplace:  t e^t = 12 / kappa^2                    (Lambert's W)
    gaussian: 4 (phi(t) - t Q(t)) = t kappa^2 / 6     (phi the normal density, Q its upper tail)

The paper takes kappa = 2 / 2^b. Here it is the grid's own: two sides share its steps, a one-sided range has them all, which is
the paper's b + 1 for ReLUs. Exact zeros (ReLU, pruning) are left out of the moments of a density around zero: they cost nothing.

Source: Banner et al. 2019, arXiv:1810.05723, section 4 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qexp.base.errors import choose
from qexp.base.types import QuantSpec
from qexp.config.calibrate import CalibrateSettings
from qexp.ptq.grid_traits import is_unsigned, num_steps, shrinks_together
from qexp.ptq.samples import Sample

_DENSITY = 1 / math.sqrt(2 * math.pi)


def aciq_ratio(distribution: str, kappa: float) -> float:
    """The best clip in units of the scale: b = E|x| of `laplace`, sigma of `gaussian`.

    Args:
        distribution: `laplace` or `gaussian`.
        kappa: the grid's step in units of the clip, above 0.

    >>> [round(aciq_ratio("laplace", 2 / 2**bits), 2) for bits in (2, 4, 5)]
    [2.83, 5.03, 6.2]
    """
    choose("calibrate.distribution", distribution, _CONDITIONS)
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        if _CONDITIONS[distribution](middle, kappa) > 0:
            low = middle
        else:
            high = middle
    return high


def _laplace(t: float, kappa: float) -> float:
    return 2 * math.exp(-t) - t * kappa**2 / 6


def _gaussian(t: float, kappa: float) -> float:
    return 4 * (_DENSITY * math.exp(-t * t / 2) - t * math.erfc(t / math.sqrt(2)) / 2) - t * kappa**2 / 6


# Minus the derivative of the error: positive where a wider clip is better.
_CONDITIONS: dict[str, Callable[[float, float], float]] = {"laplace": _laplace, "gaussian": _gaussian}


def aciq_range(sample: Sample, spec: QuantSpec, settings: CalibrateSettings) -> tuple[Tensor, Tensor]:
    """Clip limits [G]: around zero on symmetric grids and for one-sided values, else around the mean; never beyond the values.

    Args:
        sample: at least one group has a range.
        spec: its grid; its granularity is not read.
        settings: its `distribution`, `laplace` or `gaussian`.
    """
    (values, weights), distribution = sample.points(), settings.distribution
    values = values.double()
    weights = torch.ones_like(values) if weights is None else weights
    if is_unsigned(spec):
        values, weights = values.clamp(min=0), weights * (values > 0)
    steps = num_steps(spec)
    two_sided = aciq_ratio(distribution, 2 / steps)
    nonzero = weights * (values != 0)
    around_zero = _scale(values, nonzero, distribution)
    if shrinks_together(spec):
        low, high = -two_sided * around_zero, two_sided * around_zero
    else:
        one_sided = aciq_ratio(distribution, 1 / steps)
        mean = (values * weights).sum(1) / weights.sum(1)
        around_mean = _scale(values - mean[:, None], weights, distribution)
        low, high = mean - two_sided * around_mean, mean + two_sided * around_mean
        zero = torch.zeros_like(mean)
        positive, negative = sample.minimum >= 0, sample.maximum <= 0
        positive = positive | torch.full_like(positive, is_unsigned(spec))
        low = torch.where(positive, zero, torch.where(negative, -one_sided * around_zero, low))
        high = torch.where(positive, one_sided * around_zero, torch.where(negative, zero, high))
    low, high = torch.maximum(low.float(), sample.minimum), torch.minimum(high.float(), sample.maximum)
    return low, torch.maximum(low, high)  # an unsigned grid keeps nothing of a group without positive values


def _scale(values: Tensor, weights: Tensor, distribution: str) -> Tensor:
    """[G], E|x| or the root of E[x^2]; 0 where nothing counts."""
    total = weights.sum(1).clamp(min=1e-300)
    if distribution == "laplace":
        return (values.abs() * weights).sum(1) / total
    return ((values.square() * weights).sum(1) / total).sqrt()
