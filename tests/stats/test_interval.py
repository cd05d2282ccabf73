"""The interval of a lone accuracy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from qexp.base.errors import UserError
from qexp.stats.interval import Interval, wilson


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


def test_an_interval_holds_its_ends_and_turns_over():
    interval = Interval(0.0, 2.0, 0.95)
    assert 0.0 in interval and 2.0 in interval and 2.1 not in interval
    assert interval.mirrored() == Interval(-2.0, 0.0, 0.95)
    assert str(interval.mirrored().high) == "0.0"
