"""Two networks on the same images: how far apart they are, how sure that is, and what a test set of this size can show.

A is the reference, B what is compared with it. Only images on which exactly one of the two is right say anything about the
difference: n10 of them are right in A and wrong in B, n01 the reverse. All intervals here are about test images drawn anew from
the same population, with both trained networks (their seeds, their calibration images) held fixed; `qexp.stats.seeds` is about
seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import bisect
from scipy.special import bdtrik, betainc

from qexp.base.checks import check_range
from qexp.base.errors import UserError
from qexp.stats.inputs import SAME_IMAGES, as_correct, check_same_images, check_same_length, check_share
from qexp.stats.interval import Interval
from qexp.stats.score import score_interval

POWER_TAIL = 1e-12  # chance of numbers of flips that a power is not summed over


@dataclass(frozen=True, kw_only=True)
class Paired:
    """B against A on the same images.

    Args:
        n: images.
        n10: images right in A and wrong in B.
        n01: images wrong in A and right in B.
        interval: of `difference`, points; `qexp.stats.score.score_interval`, which holds with few flips and with none.
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


def compare(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    index_a: ArrayLike | None = None,
    index_b: ArrayLike | None = None,
    classes_a: ArrayLike | None = None,
    classes_b: ArrayLike | None = None,
    level: float = 0.95,
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
    return compare_counts(n10, n01, n, disagreement=disagreement, level=level)


def compare_counts(
    n10: int,
    n01: int,
    n: int,
    *,
    disagreement: float | None = None,
    level: float = 0.95,
) -> Paired:
    """`compare` from the counts, which hold all that correctness says about the difference.

    >>> paired = compare_counts(117, 74, 2000)
    >>> paired.difference, round(paired.p_value, 4)
    (-2.15, 0.0023)
    """
    interval = score_interval(n10, n01, n, level=level)
    p_value = float(mcnemar(n10, n01))
    return Paired(n=int(n), n10=int(n10), n01=int(n01), interval=interval, p_value=p_value, disagreement=disagreement)


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
    return np.minimum(1.0, 2 * _binomial(np.minimum(n10, n01), np.add(n10, n01), 0.5))


def mcnemar_power(discordant: float, difference: float, n: int, *, alpha: float = 0.05) -> float:
    """The probability that the exact McNemar test on n new images finds a true difference.

    Sum over m of P(M = m) P(p(X, m - X) <= alpha), M ~ Binomial(n, r), X ~ Binomial(m, (r + d)/2r), r = discordant/100,
    d = difference/100: how many images flip is left to chance, as it is.

    Args:
        discordant: share of images on which exactly one of the two networks is right, percent (`Paired.discordant`).
        difference: true difference, points; at most `discordant` either way.
        n: images.
        alpha: that p must not exceed.

    Raises:
        UserError: a difference larger than the share of images that could make it.

    Source: Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43 (1987), with
    the exact distribution in place of its approximation, whose d^2 term is not small where most flips go one way.

    >>> round(mcnemar_power(2.0, 0.41, 10_000), 2), round(mcnemar_power(0.02, 0.02, 1000), 2)  # it takes six flips
    (0.81, 0.0)
    """
    if n < 1:
        raise UserError("n", n, allowed="at least one image")
    check_range("discordant", discordant, 0, 100)
    check_range("difference", abs(difference), 0, discordant)
    check_share("alpha", alpha)
    if discordant == 0:
        return 0.0
    share = discordant / 100
    flips = _likely(n, share)
    # The most flips of the rarer way with p <= alpha; -1 where even none is too many.
    most = np.nan_to_num(np.ceil(bdtrik(alpha / 2, flips, 0.5)))
    most -= mcnemar(most, flips - most) > alpha
    to_b = (discordant + difference) / (2 * discordant)
    seen = _binomial(most, flips, to_b) + _binomial(most, flips, 1 - to_b)
    chance = _binomial(flips, n, share) - _binomial(flips - 1, n, share)
    return float(np.clip((chance * seen).sum(), 0.0, 1.0))


def minimum_detectable_effect(discordant: float, n: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest difference that the exact McNemar test on n images finds with probability `power`, points.

    None where even one that all flips make is found less often.

    Args:
        discordant: as in `mcnemar_power`.
        n: images.
        power: probability that the difference is found.
        alpha: that p must not exceed.

    >>> round(minimum_detectable_effect(2, 10_000), 2), round(minimum_detectable_effect(2, 2000), 2)
    (0.4, 0.91)
    >>> minimum_detectable_effect(0.28, 1800)  # about five flips
    """
    check_share("power", power)
    if mcnemar_power(discordant, discordant, n, alpha=alpha) < power:
        return None

    def missing(difference: float) -> float:
        return mcnemar_power(discordant, difference, n, alpha=alpha) - power

    return float(bisect(missing, 0.0, discordant, xtol=1e-6)) if missing(0.0) < 0 else 0.0


def _binomial(k: ArrayLike, n: ArrayLike, share: float) -> NDArray[np.float64]:
    """P(X <= k), X ~ Binomial(n, share), elementwise: I_{1 - share}(n - k, k + 1), the regularized incomplete beta function.

    Rejected: `scipy.stats.binom`, which is equal but for the last digits, and takes a second to import, of every report.
    """
    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    inside = (k >= 0) & (k < n)
    values = betainc(np.where(inside, n - k, 1.0), np.where(inside, k + 1.0, 1.0), 1 - share)
    return np.where(inside, values, k >= n)


def _likely(n: int, share: float) -> NDArray[np.float64]:
    """The numbers that Binomial(n, share) may give, but for tails of less than `POWER_TAIL` each.

    By Bernstein's inequality, P(|M - n r| >= t) <= 2 exp(-t^2/(2 n r (1 - r) + 2 t/3)).
    """
    exponent = -np.log(POWER_TAIL / 2)
    reach = exponent / 3 + np.sqrt(exponent**2 / 9 + 2 * exponent * n * share * (1 - share))
    return np.arange(max(0, np.floor(n * share - reach)), min(n, np.ceil(n * share + reach)) + 1)


def _check_both(what: str, a: object | None, b: object | None) -> None:
    """Raise `UserError` where one of the two is given without the other."""
    if (a is None) != (b is None):
        raise UserError(
            what, f"given for {'B' if a is None else 'A'} only", allowed="given for both or neither", remedy=SAME_IMAGES
        )
