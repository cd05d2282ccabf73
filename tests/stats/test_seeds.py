"""Means over seeds, paired t tests and the bootstrap over seeds and images."""

from math import isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_rel
from statsmodels.stats.weightstats import DescrStatsW

from qexp.base.errors import UserError
from qexp.stats.score import score_interval
from qexp.stats.seeds import hierarchical_bootstrap, over_draws_and_images, over_seeds, paired_over_seeds

VALUES = [91.2, 91.9, 91.6, 92.3, 91.4]
OTHERS = [90.8, 91.7, 91.5, 91.8, 91.3]


def test_mean_deviation_and_interval_against_statsmodels():
    spread, expected = over_seeds(VALUES, level=0.9), DescrStatsW(VALUES)
    assert (spread.mean, spread.num_seeds) == (pytest.approx(expected.mean), 5)
    assert spread.sd == pytest.approx(np.std(VALUES, ddof=1))
    assert (spread.interval.low, spread.interval.high) == pytest.approx(expected.tconfint_mean(alpha=0.1))
    assert spread.p_value is None


def test_the_paired_test_against_scipy():
    differences, expected = paired_over_seeds(VALUES, OTHERS), ttest_rel(OTHERS, VALUES)
    assert differences.p_value == pytest.approx(expected.pvalue)
    bounds = expected.confidence_interval(0.95)
    assert (differences.interval.low, differences.interval.high) == pytest.approx((bounds.low, bounds.high))
    assert differences.mean == pytest.approx(np.mean(OTHERS) - np.mean(VALUES))


def test_one_seed_has_a_mean_and_no_spread():
    spread = over_seeds([92.0])
    assert (spread.mean, spread.num_seeds, spread.sd, spread.interval, spread.p_value) == (92.0, 1, None, None, None)
    assert paired_over_seeds([92.0], [91.0]).p_value is None


def test_seeds_that_all_give_the_same_have_no_test():
    differences = paired_over_seeds([92.0, 93.0], [91.0, 92.0])
    assert (differences.mean, differences.sd, differences.p_value) == (-1.0, 0.0, None)
    assert (differences.interval.low, differences.interval.high) == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over_seeds([]), "values over seeds=0 values"),
        (lambda: over_seeds([92.0, float("nan")]), "values over seeds=nan"),
        (lambda: over_seeds(VALUES, level=95), "level=95"),
        (lambda: paired_over_seeds([1.0, 2.0], [1.0]), "seeds of B=1"),
        (lambda: hierarchical_bootstrap([[1, 0]]), "number of seeds=1"),
        (lambda: hierarchical_bootstrap([1, 0]), "an array [seeds, n]"),
        (lambda: hierarchical_bootstrap(np.zeros((2, 0))), "no image"),
        (lambda: hierarchical_bootstrap(np.zeros((2, 3)), np.zeros((2, 4))), "against=array of shape (2, 4)"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value)


def two_methods(seeds=4, n=300, flip=0.05):
    generator = np.random.default_rng(0)
    base = generator.random(n) < 0.85
    a = base ^ (generator.random((seeds, n)) < flip)
    return a, np.where(generator.random((seeds, n)) < 0.06, False, a)


def test_the_hierarchical_bootstrap_is_that_of_resampled_seeds_and_images():
    """Seeds and images drawn one by one, the images once for all seeds; a tenth of the width is left for chance."""
    a, b = two_methods()
    change = b.astype(int) - a.astype(int)
    generator = np.random.default_rng(9)
    means = []
    for _ in range(4000):
        chosen = change[generator.integers(4, size=4)][:, generator.integers(300, size=300)]
        means.append(100 * chosen.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    difference, interval = hierarchical_bootstrap(b, a)
    assert difference == pytest.approx(100 * change.mean())
    assert abs(interval.low - low) < 0.1 * (high - low)
    assert abs(interval.high - high) < 0.1 * (high - low)


def test_seeds_that_are_copies_leave_the_uncertainty_of_images():
    """Then it is the interval of one of them: more seeds of the same answers are no more images."""
    a, b = (values[0] for values in two_methods(n=1000))
    n10, n01 = int((a & ~b).sum()), int((~a & b).sum())
    _, interval = hierarchical_bootstrap(np.stack([b] * 5), np.stack([a] * 5))
    expected = score_interval(n10, n01, 1000)
    assert abs(interval.low - expected.low) <= 0.2
    assert abs(interval.high - expected.high) <= 0.2


def test_a_lone_accuracy():
    a, _ = two_methods()
    accuracy, interval = hierarchical_bootstrap(a)
    assert accuracy == pytest.approx(100 * a.mean())
    assert interval.low < accuracy < interval.high


def test_how_many_draws_are_held_at_once_changes_no_number(monkeypatch):
    a, b = two_methods()
    whole = hierarchical_bootstrap(b, a, draws=500)
    monkeypatch.setattr("qexp.stats.seeds.CHUNK", 700)
    assert hierarchical_bootstrap(b, a, draws=500) == whole


@given(st.integers(0, 2**32 - 1))
def test_exchanging_the_methods_changes_the_sign_and_nothing_else(seed):
    generator = np.random.default_rng(seed)
    a, b = generator.random((2, 3, 40)) < 0.8
    there, back = hierarchical_bootstrap(b, a, draws=100), hierarchical_bootstrap(a, b, draws=100)
    assert there[0] == -back[0]
    if there[0]:  # equal methods leave the sign open, so that the draws' chance is not mirrored
        assert there[1] == back[1].mirrored()


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_the_mean_lies_in_its_interval(values):
    spread = over_seeds(values)
    assert spread.interval.low <= spread.mean <= spread.interval.high
    assert isclose(spread.interval.high - spread.mean, spread.mean - spread.interval.low, abs_tol=1e-9)


def test_draws_and_images_together_by_their_definition_and_beside_the_bootstrap():
    generator = np.random.default_rng(2)
    hard, draws = generator.random(800), generator.normal(0, 0.05, 12)[:, None]
    right = hard + generator.normal(0, 0.05, (12, 800)) < 0.7 + draws
    spread = over_draws_and_images(right)
    by_draw, by_image = 100 * right.mean(1), 100 * right.mean(0)
    variances = by_draw.var(ddof=1) / 12, by_image.var(ddof=1) / 800
    error = sum(variances) ** 0.5
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 11 + variances[1] ** 2 / 799)
    low, high = student.interval(0.95, freedom, loc=by_draw.mean(), scale=error)
    assert (spread.mean, spread.sd) == pytest.approx((by_draw.mean(), by_draw.std(ddof=1)))
    assert (spread.interval.low, spread.interval.high) == pytest.approx((low, high))
    _, resampled = hierarchical_bootstrap(right)
    assert spread.interval.high - spread.interval.low == pytest.approx(resampled.high - resampled.low, rel=0.2)
    alone = over_draws_and_images(np.stack([right[0]] * 4))  # draws that change nothing leave the uncertainty of images
    assert alone.sd == 0 and alone.interval.high - alone.mean == pytest.approx(1.96 * 100 * right[0].std() / 800**0.5, rel=0.01)
    assert over_draws_and_images(np.zeros((3, 5))).p_value is None
    with pytest.raises(UserError, match="at least two draws"):
        over_draws_and_images(right[:1])
