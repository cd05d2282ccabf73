"""Claims of no loss: what has to be shown is that the loss is small, which a large p value of a difference does not show."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import ndtr

from qexp.base.checks import check_range
from qexp.stats.inputs import check_share
from qexp.stats.interval import Interval
from qexp.stats.paired import Paired
from qexp.stats.score import score, score_interval

MARGIN = 0.5  # points


@dataclass(frozen=True, kw_only=True)
class NonInferiority:
    """Whether B is not worse than A by as much as a margin.

    Args:
        margin: the loss that would matter, points.
        alpha: error rate of each one-sided test.
        interval: of the difference B - A, points, at level 1 - 2 alpha (90 % where alpha is 0.05), so that each end is a
            one-sided 1 - alpha bound.
        p_value: one-sided, of a loss of at least the margin.
        p_gain: one-sided, of a gain of at least the margin.
    """

    margin: float
    alpha: float
    interval: Interval
    p_value: float
    p_gain: float

    @property
    def loss_bound(self) -> float:
        """The largest loss A - B that the data allow at one-sided level 1 - alpha, points; negative where even that is a gain."""
        return 0.0 - self.interval.low

    @property
    def holds(self) -> bool:
        """B is non-inferior: `loss_bound` is below the margin."""
        return self.loss_bound < self.margin

    @property
    def equivalent(self) -> bool:
        """Both one-sided tests reject (TOST): the whole interval lies within +-margin."""
        return self.holds and self.interval.high < self.margin

    @property
    def p_equivalent(self) -> float:
        """Of a difference of at least the margin, whichever way: the larger of both."""
        return max(self.p_value, self.p_gain)


def non_inferiority(paired: Paired, *, margin: float = MARGIN, alpha: float = 0.05) -> NonInferiority:
    """Test that B loses less than `margin` points against A.

    The two one-sided tests (TOST), each Tango's score test (`qexp.stats.score`) of a difference of exactly the margin, and the
    interval that belongs to them. Where the true loss is the margin, `holds` errs in at most about 5 % of repetitions at alpha
    0.05; of many such claims p values are adjusted (`qexp.stats.family.adjust`). Like every
    interval of this package but those over seeds, it is about new test images for these two trained networks.

    Args:
        paired: of `qexp.stats.paired.compare`.
        margin: points, chosen before looking. For "99 % of the float accuracy" it is a hundredth of that accuracy.
        alpha: error rate of each one-sided test.

    Raises:
        UserError: a margin that is not positive.

    Source: Schuirmann, A comparison of the two one-sided tests procedure and the power approach for assessing the equivalence
    of average bioavailability, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987), with the test of Tango, Statistics
    in Medicine 17 (1998).

    >>> from qexp.stats.paired import compare_counts
    >>> same_but_few, same_and_many = (non_inferiority(compare_counts(0, 0, n)) for n in (20, 10_000))
    >>> same_but_few.holds, same_and_many.holds
    (False, True)
    """
    check_range("margin", margin, 0.0, 100.0, open_low=True)
    check_share("alpha", 2 * alpha)
    return NonInferiority(
        margin=margin,
        alpha=alpha,
        interval=score_interval(paired.n10, paired.n01, paired.n, level=1 - 2 * alpha),
        p_value=float(ndtr(-score(paired.n10, paired.n01, paired.n, -margin))),
        p_gain=float(ndtr(-score(paired.n01, paired.n10, paired.n, -margin))),
    )
