"""An interval, the one of a lone accuracy, and that of a difference of two.

Rejected: statsmodels' `proportion_confint` and `confint_proportions_2indep`, which give the same bits: importing it with
`scipy.stats` takes 1.5 s, of every command that trains or reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from qexp.base.checks import check_range
from qexp.base.errors import UserError
from qexp.stats.inputs import check_share

Counts = int | NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Args:
        low: lower end, percent or points.
        high: upper end.
        level: share of repetitions that it is meant to cover, 0.95 for 95 %.
    """

    low: float
    high: float
    level: float

    def __contains__(self, value: float) -> bool:
        """True where `value` lies inside, ends included."""
        return self.low <= value <= self.high

    def mirrored(self) -> Interval:
        """The interval of the quantity with its sign turned: [-high, -low]."""
        return Interval(0.0 - self.high, 0.0 - self.low, self.level)  # 0.0 - 0.0 is no negative zero, which would print as -0.00


def wilson(num_correct: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson score interval of one network's accuracy, percent.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), p = num_correct/n, z the normal quantile of (1 + level)/2.
    It covers the accuracy on the population that the n test images were drawn from, for this one trained network. Two networks
    scored on the same images are compared by `qexp.stats.paired.compare`; whether their Wilson intervals overlap says little.

    Args:
        num_correct: images that the network got right.
        n: images.
        level: of the interval.

    Raises:
        UserError: n is 0, or num_correct is not from 0 to n.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    >>> interval = wilson(0, 10)
    >>> interval.low, round(interval.high, 2)
    (0.0, 27.75)
    """
    if n < 1:
        raise UserError("n", n, allowed="at least one image")
    check_range("num_correct", num_correct, 0, n)
    check_share("level", level)
    low, high = wilson_ends(num_correct, n, level=level)
    return Interval(float(low), float(high), level)


def wilson_ends(num_correct: Counts, n: Counts, *, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends of `wilson` for many networks at once, percent.

    Args:
        num_correct: images that each network got right, from 0 to its `n`.
        n: images of each.
        level: of the intervals.

    >>> low, high = wilson_ends(np.array([0, 10]), np.array([10, 10]))
    >>> low.round(2).tolist(), high.round(2).tolist()
    ([0.0, 72.25], [27.75, 100.0])
    """
    low, high = _wilson_shares(num_correct, n, level)
    return 100 * low, 100 * high


def newcombe(num_correct_a: int, num_correct_b: int, n: int, *, level: float = 0.95) -> Interval:
    """Newcombe's interval of the difference B - A of two accuracies of which no more than these counts is known, points.

    d - sqrt((p_b - l_b)^2 + (u_a - p_a)^2) to d + sqrt((u_b - p_b)^2 + (p_a - l_a)^2), d = p_b - p_a, l and u those of `wilson`

    It takes A and B to have been scored on different images. Networks scored on the same images mostly err on the same ones, and
    their difference is known better than this says: where predictions were kept, `qexp.stats.paired.compare` says how much.

    Args:
        num_correct_a: images that A got right.
        num_correct_b: images that B got right.
        n: images, as many for both.
        level: of the interval.

    Raises:
        UserError: n is 0, or a count is not from 0 to n.

    Source: Newcombe, Interval estimation for the difference between independent proportions: comparison of eleven methods,
    Statistics in Medicine 17 (1998), method 10.

    >>> interval = newcombe(987, 966, 1000)
    >>> round(interval.low, 2), round(interval.high, 2)
    (-3.52, -0.78)
    """
    if n < 1:
        raise UserError("n", n, allowed="at least one image")
    check_range("num_correct_a", num_correct_a, 0, n)
    check_range("num_correct_b", num_correct_b, 0, n)
    check_share("level", level)
    low, high = newcombe_ends(num_correct_a, num_correct_b, n, level=level)
    return Interval(float(low), float(high), level)


def newcombe_ends(
    num_correct_a: Counts, num_correct_b: Counts, n: Counts, *, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends of `newcombe` for many pairs at once, points.

    Args:
        num_correct_a: images that A of each pair got right, from 0 to its `n`.
        num_correct_b: images that B of each pair got right.
        n: images of each pair.
        level: of the intervals.

    >>> low, high = newcombe_ends(np.array([987, 987]), np.array([966, 987]), np.array([1000, 1000]))
    >>> low.round(2).tolist(), high.round(2).tolist()
    ([-3.52, -1.06], [-0.78, 1.06])
    """
    (low_a, high_a), (low_b, high_b) = (_wilson_shares(count, n, level) for count in (num_correct_a, num_correct_b))
    a, b = np.divide(num_correct_a, n), np.divide(num_correct_b, n)
    below, above = np.sqrt((b - low_b) ** 2 + (high_a - a) ** 2), np.sqrt((a - low_a) ** 2 + (high_b - b) ** 2)
    return 100 * (b - a - below), 100 * (b - a + above)


def _wilson_shares(num_correct: Counts, n: Counts, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of `wilson` as shares of 1."""
    share, images = np.divide(num_correct, n), np.asarray(n, dtype=np.float64)
    quantile = -ndtri((1 - level) / 2)
    divisor = 1 + quantile**2 / images
    center = (share + quantile**2 / (2 * images)) / divisor
    half = quantile * np.sqrt(share * (1 - share) / images + quantile**2 / (4 * images**2)) / divisor
    return np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)
