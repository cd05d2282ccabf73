"""Two networks on the same images: how far apart they are, how sure that is, and what a test set of this size can show.

A is the reference, B what is compared with it. Only images on which exactly one of the two is right say anything about the
difference: n10 of them are right in A and wrong in B, n01 the reverse. All intervals here are about test images drawn anew from
the same population, with both trained networks (their seeds, their calibration images) held fixed; `qexp.stats.seeds` is about
seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm

from qexp.base.checks import check_range
from qexp.base.errors import UserError
from qexp.stats.inputs import SAME_IMAGES, as_correct, check_counts, check_same_images, check_same_length, check_share
from qexp.stats.interval import Interval

DRAWS = 10_000  # of a bootstrap


@dataclass(frozen=True, kw_only=True)
class Paired:
    """B against A on the same images.

    Args:
        n: images.
        n10: images right in A and wrong in B.
        n01: images wrong in A and right in B.
        interval: of `difference`, points; the paired percentile bootstrap of `bootstrap_interval`.
        p_value: of the exact McNemar test, two-sided, of equal accuracy.
        disagreement: share of images for which the two predict different classes, percent, which counts images that both get
            wrong too; None where the predicted classes were not given.
    """

    n: int
    n10: int
    n01: int
    interval: Interval
    p_value: float
    disagreement: float | None = None

    @property
    def difference(self) -> float:
        """Accuracy of B minus accuracy of A, d = 100 (n01 - n10)/n, points."""
        return 100 * (self.n01 - self.n10) / self.n

    @property
    def discordant(self) -> float:
        """100 (n10 + n01)/n, share of images on which exactly one of the two is right, percent."""
        return 100 * (self.n10 + self.n01) / self.n

    @property
    def se(self) -> float:
        """Standard error of `difference`, points: 100 sqrt(n10 + n01 - (n01 - n10)^2/n)/n."""
        return 100 * math.sqrt(self.n10 + self.n01 - (self.n01 - self.n10) ** 2 / self.n) / self.n


def compare(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    index_a: ArrayLike | None = None,
    index_b: ArrayLike | None = None,
    classes_a: ArrayLike | None = None,
    classes_b: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """Compare B with A image by image.

    Args:
        correct_a: [n] bool, whether A is right for each image.
        correct_b: [n] bool, likewise of B.
        index_a: [n] integers, which images A has seen; give both, so that different images are noticed.
        index_b: [n] integers, likewise of B.
        classes_a: [n] integers, classes that A predicts, for `Paired.disagreement`. -1, where logits were NaN, is a class like
            any other.
        classes_b: [n] integers, likewise of B.
        level: of the interval.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: no images, or not the same ones.

    >>> paired = compare([1, 1, 1, 0], [1, 0, 0, 1])
    >>> paired.difference, paired.n10, paired.n01, paired.p_value
    (-25.0, 2, 1, 1.0)
    """
    a, b = as_correct("A", correct_a), as_correct("B", correct_b)
    n = check_same_length({"A": len(a), "B": len(b)})
    _check_both("index", index_a, index_b)
    if index_a is not None and index_b is not None:
        check_same_images({"A": index_a, "B": index_b}, n)
    disagreement = None
    _check_both("classes", classes_a, classes_b)
    if classes_a is not None and classes_b is not None:
        first, second = np.asarray(classes_a), np.asarray(classes_b)
        check_same_length({"A": n, "the classes of A": len(first), "the classes of B": len(second)})
        disagreement = 100 * int(np.count_nonzero(first != second)) / n
    n10, n01 = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(~a & b))
    return compare_counts(n10, n01, n, disagreement=disagreement, level=level, draws=draws, seed=seed)


def compare_counts(
    n10: int,
    n01: int,
    n: int,
    *,
    disagreement: float | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """`compare` from the counts, which hold all that correctness says about the difference.

    >>> paired = compare_counts(117, 74, 2000)
    >>> paired.difference, round(paired.p_value, 4), round(paired.se, 2)
    (-2.15, 0.0023, 0.69)
    """
    interval = bootstrap_interval(n10, n01, n, level=level, draws=draws, seed=seed)
    p_value = float(mcnemar(n10, n01))
    return Paired(n=int(n), n10=int(n10), n01=int(n01), interval=interval, p_value=p_value, disagreement=disagreement)


def bootstrap_interval(
    n10: int, n01: int, n: int, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:  # fmt: skip
    """Paired percentile bootstrap interval of the difference, points.

    Images are resampled with replacement, each with the results of both. The difference depends on a resample's counts alone, and
    these are multinomial: (N10, N01, rest) ~ Multinomial(n; n10/n, n01/n, rest/n). So counts are drawn, not images, and
    nothing is approximated by it. The ends are the (1 - level)/2 and (1 + level)/2 quantiles of 100 (N01 - N10)/n. B against A
    gives exactly the mirrored interval of A against B.

    It covers the difference on the population of images. It needs flips to resample: with twenty or more it covers in 94 to
    95 % of repetitions at level 0.95, with about three in 84 %, and without any it is the point 0;
    `qexp.stats.score.score_interval` holds there too.

    Args:
        n10: images right in A and wrong in B.
        n01: images wrong in A and right in B.
        n: images.
        level: of the interval.
        draws: number of resamples.
        seed: of numpy's default generator; the same on every machine for one numpy.

    Raises:
        UserError: counts that cannot be.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    >>> bootstrap_interval(4, 4, 2000)
    Interval(low=-0.3, high=0.3, level=0.95)
    """
    check_counts(n10, n01, n)
    check_share("level", level)
    check_range("draws", draws, 1)
    # The larger count first, so that the order of the two networks changes the sign and nothing else.
    larger, smaller = max(n10, n01), min(n10, n01)
    counts = np.random.default_rng(seed).multinomial(n, [larger / n, smaller / n, (n - larger - smaller) / n], size=draws)
    change = counts[:, 0] - counts[:, 1]
    if larger == smaller:
        high = float(np.quantile(np.abs(change), level))
        low = 0.0 - high
    else:
        low, high = (float(end) for end in np.quantile(change, [(1 - level) / 2, (1 + level) / 2]))
    interval = Interval(100 * low / n, 100 * high / n, level)
    return interval if n01 >= n10 else interval.mirrored()


def mcnemar(n10: ArrayLike, n01: ArrayLike) -> NDArray[np.float64]:
    """Exact two-sided McNemar p value of equal accuracy, elementwise.

    p = min(1, 2 sum_{k <= min(n10, n01)} C(m, k)/2^m), m = n10 + n01: given that m images flipped, each way is as likely. It is
    never too small, but conservative where m is small; without flips it is 1. A large p does not show that two networks are
    equal: see `qexp.stats.noninferiority`.

    Args:
        n10: images right in A and wrong in B, integers.
        n01: images wrong in A and right in B, integers of the same shape.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947), with the binomial distribution in place of its approximation.

    >>> float(mcnemar(0, 6))  # 2/2^6
    0.03125
    """
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(n10, n01), np.add(n10, n01), 0.5))


def minimum_detectable_effect(discordant: float, n: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference that a paired test on n images finds with probability `power`, points.

    100 (z_{1 - alpha/2} + z_power) sqrt(discordant/100)/sqrt(n); the factor is 2.80 for 80 % and 5 %.

    Args:
        discordant: share of images on which exactly one of the two networks is right, percent (`Paired.discordant`).
        n: images.
        power: probability that the difference is found.
        alpha: of the two-sided test.

    Source: Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43 (1987), without
    its d^2 term, which is small where differences are.

    >>> round(minimum_detectable_effect(2, 10_000), 2), round(minimum_detectable_effect(2, 2000), 2)
    (0.4, 0.89)
    """
    if n < 1:
        raise UserError("n", n, allowed="at least one image")
    check_range("discordant", discordant, 0, 100)
    check_share("power", power)
    check_share("alpha", alpha)
    return 100 * float(norm.ppf(1 - alpha / 2) + norm.ppf(power)) * math.sqrt(discordant / 100 / n)


def _check_both(what: str, a: object | None, b: object | None) -> None:
    """Raise `UserError` where one of the two is given without the other."""
    if (a is None) != (b is None):
        raise UserError(
            what, f"given for {'B' if a is None else 'A'} only", allowed="given for both or neither", remedy=SAME_IMAGES
        )
