"""Tango's score test and interval, against the likelihood itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar

from qexp.base.errors import UserError
from qexp.stats.score import score, score_interval

COUNTS = [(7, 1, 21), (4, 4, 2000), (117, 74, 2000), (0, 6, 500), (12, 0, 40)]


def score_by_search(n10, n01, n, difference):
    """z with the variance at the likelihood's maximum under the hypothesis, which is searched for."""
    shift = difference / 100

    def loss(only_a):
        shares, counts = np.array([only_a, only_a + shift, 1 - 2 * only_a - shift]), np.array([n10, n01, n - n10 - n01])
        return -np.sum(counts[counts > 0] * np.log(shares[counts > 0]))

    low, high = max(0.0, -shift) + 1e-12, (1 - shift) / 2 - 1e-12
    only_a = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (n01 - n10 - n * shift) / np.sqrt(n * (2 * only_a + shift - shift**2))


@pytest.mark.parametrize(("n10", "n01", "n"), COUNTS)
@pytest.mark.parametrize("difference", [-0.5, 0.3, -20.0, 25.0])
def test_the_score_is_that_of_the_searched_maximum(n10, n01, n, difference):
    assert score(n10, n01, n, difference) == pytest.approx(score_by_search(n10, n01, n, difference), rel=1e-3)


@pytest.mark.parametrize(("n10", "n01", "n"), COUNTS)
def test_without_a_difference_it_is_mcnemars_chi_squared(n10, n01, n):
    expected = mcnemar([[n - n10 - n01, n10], [n01, 0]], exact=False, correction=False).statistic
    assert score(n10, n01, n, 0.0) ** 2 == pytest.approx(expected)


@pytest.mark.parametrize(("n10", "n01", "n"), COUNTS)
def test_the_ends_are_where_the_score_reaches_its_limit(n10, n01, n):
    interval = score_interval(n10, n01, n, level=0.9)
    assert score_by_search(n10, n01, n, interval.low) == pytest.approx(1.644854, rel=1e-3)
    assert score_by_search(n10, n01, n, interval.high) == pytest.approx(-1.644854, rel=1e-3)


def test_an_interval_as_published():
    """Flips 7 and 1 of 21: -0.517 to -0.026 in Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014)."""
    interval = score_interval(7, 1, 21)
    assert (round(interval.low, 1), round(interval.high, 1)) == (-51.7, -2.6)


def test_without_flips_it_is_no_point():
    interval = score_interval(0, 0, 500)
    assert interval.high == pytest.approx(100 * 3.841459 / 503.841459)
    assert interval.low == -interval.high


def test_all_images_flip_and_one_image():
    assert score_interval(500, 0, 500).low == -100.0
    assert -99 < score_interval(500, 0, 500).high < -98
    assert score_interval(0, 1, 1).high == 100.0
    assert score_interval(0, 0, 1).low < -50


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 300), st.sampled_from([0.8, 0.95, 0.999]))
def test_it_holds_the_difference_and_turns_over_with_the_networks(n10, n01, num_alike, level):
    n = max(n10 + n01 + num_alike, 1)
    interval = score_interval(n10, n01, n, level=level)
    assert -100 <= interval.low <= 100 * (n01 - n10) / n + 1e-9
    assert 100 * (n01 - n10) / n - 1e-9 <= interval.high <= 100
    assert score_interval(n01, n10, n, level=level) == interval.mirrored()


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(UserError):
        score_interval(*counts)
