"""Tango's score test of a difference between paired proportions, which holds with few flips and with none."""

from __future__ import annotations

import math

from scipy.optimize import bisect
from scipy.special import ndtri

from qexp.stats.inputs import check_counts, check_share
from qexp.stats.interval import Interval


def score(n10: int, n01: int, n: int, difference: float) -> float:
    """Score statistic z of the hypothesis that B is better than A by `difference` points; standard normal where it is true.

    With D = difference/100: z = (n01 - n10 - n D)/sqrt(n (2 q + D (1 - D))), where q is the maximum likelihood estimate, under
    the hypothesis, of the share that is right in A alone: q = (sqrt(b^2 - 4 a c) - b)/2a with a = 2 n,
    b = (2 n + n10 - n01) D - n10 - n01, c = -n10 D (1 - D). At D = 0 the square of z is McNemar's chi squared.

    Args:
        n10: images right in A and wrong in B.
        n01: images wrong in A and right in B.
        n: images.
        difference: B - A, points, -100 to 100.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998).

    >>> round(score(10, 20, 1000, 0.0) ** 2, 3)  # (20 - 10)^2/30
    3.333
    """
    check_counts(n10, n01, n)
    shift = difference / 100
    a, b, c = 2 * n, (2 * n + n10 - n01) * shift - n10 - n01, -n10 * shift * (1 - shift)
    only_a = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    distance, variance = n01 - n10 - n * shift, n * (2 * only_a + shift * (1 - shift))
    if variance <= 1e-12:  # the hypothesis leaves nothing to chance: it is what was seen, or it is impossible
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def score_interval(n10: int, n01: int, n: int, *, level: float = 0.95) -> Interval:
    """Interval of the difference B - A, points: all differences whose score test is not rejected.

    Its ends are where `score` is +-z, z the normal quantile of (1 + level)/2. Without flips it is +-100 z^2/(n + z^2), about
    384/n points at level 0.95: so much may still be hidden. It covers the difference on the population that the test images
    were drawn from, for these two trained networks.

    >>> interval = score_interval(0, 0, 1000)
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.383, 0.383)
    """
    check_share("level", level)
    limit = float(ndtri((1 + level) / 2))
    # The upper end is the lower end of the networks exchanged, with its sign turned.
    return Interval(_lower(n10, n01, n, limit), 0.0 - _lower(n01, n10, n, limit), level)


def _lower(n10: int, n01: int, n: int, limit: float) -> float:
    """The difference, points, whose score is `limit`."""
    check_counts(n10, n01, n)
    if n10 == n:
        return -100.0
    return float(bisect(lambda difference: score(n10, n01, n, difference) - limit, -100.0, 100 * (n01 - n10) / n, xtol=1e-11))
