"""The interval of a lone accuracy, and that of a difference of two."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from qexp.base.errors import UserError
from qexp.stats.interval import Interval, newcombe, newcombe_ends, wilson, wilson_ends


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_against_scipy(n, share, level):
    right = round(share * n)
    interval = wilson(right, n, level=level)
    expected = binomtest(right, n).proportion_ci(level, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert 100 * right / n in Interval(interval.low - 1e-9, interval.high + 1e-9, level)


@pytest.mark.parametrize(("num_correct", "n", "message"), [(0, 0, "n=0"), (3, 2, "num_correct=3"), (-1, 2, "num_correct=-1")])
def test_counts_that_cannot_be_are_refused(num_correct, n, message):
    with pytest.raises(UserError, match=message):
        wilson(num_correct, n)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_newcombe_is_made_of_two_wilson_intervals(n, share_a, share_b):
    a, b = round(share_a * n), round(share_b * n)
    of_a, of_b, difference = wilson(a, n), wilson(b, n), 100 * (b - a) / n
    below = math.hypot(100 * b / n - of_b.low, of_a.high - 100 * a / n)
    above = math.hypot(of_b.high - 100 * b / n, 100 * a / n - of_a.low)
    interval = newcombe(a, b, n)
    assert (interval.low, interval.high) == pytest.approx((difference - below, difference + above), abs=1e-9)


def test_newcombe_turns_over_with_its_networks_and_refuses_counts_that_cannot_be():
    assert newcombe(5, 0, 10) == newcombe(0, 5, 10).mirrored()
    with pytest.raises(UserError, match="num_correct_b=11"):
        newcombe(5, 11, 10)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_many_at_once_are_those_of_statsmodels(level):
    n = np.array([1, 1, 7, 20, 1000, 50_000, 50_000])
    a, b = np.array([0, 1, 3, 20, 987, 0, 49_999]), np.array([1, 1, 0, 19, 966, 50_000, 25_000])
    expected = proportion_confint(a, n, alpha=1 - level, method="wilson")
    np.testing.assert_allclose(wilson_ends(a, n, level=level), 100 * np.array(expected), rtol=1e-14, atol=1e-14)
    expected = confint_proportions_2indep(b, n, a, n, method="newcomb", compare="diff", alpha=1 - level)
    np.testing.assert_allclose(newcombe_ends(a, b, n, level=level), 100 * np.array(expected), rtol=1e-14, atol=1e-13)


def test_an_interval_holds_its_ends_and_turns_over():
    interval = Interval(0.0, 2.0, 0.95)
    assert 0.0 in interval and 2.0 in interval and 2.1 not in interval
    assert interval.mirrored() == Interval(-2.0, 0.0, 0.95)
    assert str(interval.mirrored().high) == "0.0"
