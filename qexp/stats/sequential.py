"""Two networks on the same images, looked at again and again: a decision as soon as there is one, with an error rate that holds.

B is compared with A on images that come in blocks. Of an image d is 1 where B alone is right, -1 where A alone is, else 0. A
bettor stakes the share lambda of the capital against "the mean of d is at most m": the capital becomes

    K(lambda) = (1 - lambda (1 + m))^n10 (1 + lambda (1 - m))^n01 (1 - lambda m)^(n - n10 - n01)

Where the hypothesis is true no stake gains on average, so the chance that the capital ever grows to 1/alpha is at most alpha
(Ville), however often one looks, wherever one stops, and with however few flips: nothing here is asymptotic. The capital is
divided among fixed stakes, since the best, (mean of d - m) / (variance of d), is not known before. Without a flip, a margin of
0.5 points takes 797 images; the exact binomial test at a fixed n takes 598.

Assumed is that images are exchangeable: drawn independently from the population that is spoken of, and looked at in an order
that was drawn without looking at them. Blocks in the order of their classes would not do.

Rejected: group-sequential bounds (Pocock; O'Brien-Fleming by alpha spending), which need about a third fewer images, but the
largest n before the first look, and normal differences: with a handful of flips their error is another. Wald's probability ratio
needs one alternative and the share of flips. Repeating the test at a fixed n after each block errs in more than 5 % of cases,
in a third of them after a hundred blocks (`tests/stats/test_sequential.py`).

Source: Ville, Etude critique de la notion de collectif (1939); Robbins, Statistical methods related to the law of the iterated
logarithm, Annals of Mathematical Statistics 41 (1970), for the mixture; Waudby-Smith and Ramdas, Estimating means of bounded
random variables by betting, JRSS B 86 (2024), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import bisect

from qexp.base.checks import check_range
from qexp.base.errors import UserError
from qexp.stats.inputs import check_counts, check_share
from qexp.stats.interval import Interval
from qexp.stats.noninferiority import MARGIN

Verdict = Literal["above", "below", "open"]
# Stakes, as shares of the largest that cannot ruin: half an octave apart, so that one is within a fifth of the best one. The
# smallest is the best for a margin of 0.25 points where a tenth of the images flip. Large ones, the best where few flip, begin
# with more.
_STAKES = 0.98 * 2.0 ** (-np.arange(12) / 2)
_LOG_PARTS = -np.log(np.arange(12) + 1) - math.log(sum(1 / (1 + place) for place in range(12)))


def log_capital(n10: ArrayLike, n01: ArrayLike, n: ArrayLike, null: float) -> NDArray[np.float64]:
    """Logarithm of the capital of a bet against "the true difference B - A is at most `null`", begun with 1.

    log sum over j of w_j K(lambda_j), as above with m = null/100, lambda_j = 0.98 2^(-j/2)/(1 + max(m, 0)), j = 0 to 11, and w_j
    proportional to 1/(j + 1). exp(-.) is a p value that may be looked at as often as one likes.

    Args:
        n10: images right in A and wrong in B, so far; any shape.
        n01: images wrong in A and right in B.
        n: images.
        null: points, above -100 and below 100.

    Source: as the module's.

    >>> round(float(log_capital(0, 0, 1000, -0.5)), 2)  # 1/20 is at 3.00
    3.92
    """
    m = null / 100
    stakes = _STAKES / (1 + max(m, 0.0))
    lost, won, n = (np.asarray(count, dtype=np.float64)[..., None] for count in (n10, n01, n))
    logs = lost * np.log1p(-stakes * (1 + m)) + won * np.log1p(stakes * (1 - m)) + (n - lost - won) * np.log1p(-stakes * m)
    return np.asarray(np.logaddexp.reduce(logs + _LOG_PARTS, axis=-1), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """What a sequential test says, and when it said so.

    Args:
        verdict: `above` or `below` the test's null; `open` where the images did not decide.
        n: images that it took.
        n10: of them, right in A and wrong in B.
        n01: of them, wrong in A and right in B.
        p_above: that the difference is at most the null; valid at any n.
        p_below: that it is at least the null; valid at any n.
    """

    verdict: Verdict
    n: int
    n10: int
    n01: int
    p_above: float
    p_below: float

    @property
    def difference(self) -> float:
        """Of these images, 100 (n01 - n10)/n, points; of a test that stopped early it exaggerates. 0 of no image."""
        return 100 * (self.n01 - self.n10) / max(self.n, 1)


@dataclass(frozen=True, kw_only=True)
class SequentialTest:
    """Is the true difference B - A above or below `null`? Both errors hold at any number of looks.

    Args:
        null: points.
        alpha_above: the chance of ever saying `above` where the difference is at most `null` is no more.
        alpha_below: the chance of ever saying `below` where it is at least `null` is no more.

    Raises:
        UserError: a null beyond +-100 points, or a rate that is none.
    """

    null: float
    alpha_above: float
    alpha_below: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not -100 < self.null < 100:
            raise UserError("null", self.null, allowed="a number of points between -100 and 100, both excluded")
        check_share("alpha_above", self.alpha_above)
        check_share("alpha_below", self.alpha_below)

    def look(self, n10: int, n01: int, n: int) -> Sequential:
        """What can be said after n images; a test that is decided stays so, whatever comes after (`run`).

        Args:
            n10: images right in A and wrong in B, of all so far.
            n01: images wrong in A and right in B.
            n: images so far; 0 is open.

        Raises:
            UserError: counts that cannot be.
        """
        if n == 0 == n10 == n01:
            return Sequential(verdict="open", n=0, n10=0, n01=0, p_above=1.0, p_below=1.0)
        check_counts(n10, n01, n)
        above, below = float(log_capital(n10, n01, n, self.null)), float(log_capital(n01, n10, n, -self.null))
        verdict: Verdict = "open"
        if above >= -math.log(self.alpha_above):
            verdict = "above"
        elif below >= -math.log(self.alpha_below):
            verdict = "below"
        p_above, p_below = (math.exp(min(0.0, -capital)) for capital in (above, below))
        return Sequential(verdict=verdict, n=n, n10=n10, n01=n01, p_above=p_above, p_below=p_below)

    def run(self, blocks: Iterable[tuple[int, int, int]], num_images: int | None = None) -> Sequential:
        """Take blocks until they decide; no block after that is asked for.

        Args:
            blocks: (n10, n01, n) of each block of images.
            num_images: of all blocks; where they are known, a test ends where `above` is `out_of_reach` too.

        >>> non_inferior(0.5).run([(0, 0, 500), (1, 1, 500), (1, 0, 500), (0, 1, 500), (50, 0, 500)]).n
        2000
        """
        looks = Looks(self, num_images)
        for block in blocks:
            if looks.add(*block):
                break
        return looks.seen

    def out_of_reach(self, seen: Sequential, num_images: int) -> bool:
        """True where `above` will not be said by `num_images` images even if no more image flips.

        To give up then errs to one side only, that of saying nothing: gains alone, without losses, might still have decided.

        Args:
            seen: so far.
            num_images: that there are.
        """
        best = float(log_capital(seen.n10, seen.n01, max(num_images, seen.n, 1), self.null))
        return seen.verdict == "open" and self.null < 0 and best < -math.log(self.alpha_above)


class Looks:
    """A sequential test whose blocks come one by one.

    Args:
        test: that is looked at after each.
        num_images: of all blocks; where they are known, it ends where `above` is out of reach too.
    """

    def __init__(self, test: SequentialTest, num_images: int | None = None) -> None:
        self._test, self._num_images = test, num_images
        self.seen = test.look(0, 0, 0)

    def add(self, n10: int, n01: int, n: int) -> bool:
        """Take a block; True where no further one is needed.

        Args:
            n10: its images right in A and wrong in B.
            n01: those wrong in A and right in B.
            n: its images.
        """
        self.seen = seen = self._test.look(self.seen.n10 + n10, self.seen.n01 + n01, self.seen.n + n)
        given_up = self._num_images is not None and self._test.out_of_reach(seen, self._num_images)
        return seen.verdict != "open" or given_up


def non_inferior(margin: float = MARGIN, *, alpha: float = 0.05) -> SequentialTest:
    """The test of a loss of less than `margin`: `above` says that it is less, `below` that it is not, each at error rate alpha.

    Args:
        margin: points, chosen before looking.
        alpha: of either error.

    Raises:
        UserError: a margin that is not above 0 and below 100.
    """
    check_range("margin", margin, 0.0, open_low=True)
    return SequentialTest(null=-margin, alpha_above=alpha, alpha_below=alpha)


def different(*, alpha: float = 0.05) -> SequentialTest:
    """The two-sided test of any difference: `above` says that B is better, `below` that it is worse; any error at rate alpha.

    Args:
        alpha: of both together.
    """
    return SequentialTest(null=0.0, alpha_above=alpha / 2, alpha_below=alpha / 2)


def confidence_sequence(n10: int, n01: int, n: int, *, level: float = 0.95) -> Interval:
    """Interval of the true difference B - A, points, that may be looked at after each block: all of them cover it at once.

    The differences that neither one-sided bet rejects at (1 - level)/2.

    Args:
        n10: images right in A and wrong in B, so far.
        n01: images wrong in A and right in B.
        n: images.
        level: chance that it covers the difference at every n.

    Raises:
        UserError: counts that cannot be.

    >>> interval = confidence_sequence(40, 20, 10_000)  # score_interval: -0.35 to -0.05
    >>> round(interval.low, 2), round(interval.high, 2)
    (-0.48, 0.05)
    """
    check_counts(n10, n01, n)
    check_share("level", level)
    limit = -math.log((1 - level) / 2)
    # The upper end is the lower end of the networks exchanged, with its sign turned.
    return Interval(_lower(n10, n01, n, limit), 0.0 - _lower(n01, n10, n, limit), level)


def _lower(n10: int, n01: int, n: int, limit: float) -> float:
    """The difference, points, at which the capital is exp(limit); it falls as the difference rises."""
    low, high = -100.0 + 1e-9, 100 * (n01 - n10) / n
    if high <= low or log_capital(n10, n01, n, low) <= limit:
        return -100.0
    return float(bisect(lambda difference: float(log_capital(n10, n01, n, difference)) - limit, low, high, xtol=1e-9))
