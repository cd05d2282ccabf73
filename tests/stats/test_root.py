"""Halving an interval, against scipy's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from qexp.stats.root import bisect


@given(st.floats(-50, 50), st.floats(0.01, 80), st.floats(0.01, 80), st.sampled_from([1e-3, 1e-6, 1e-11, 1e-15]))
def test_the_same_steps_as_scipy_to_the_last_bit(root, below, above, xtol):
    def function(x):
        return math.atan(x - root) ** 3

    low, high = root - below, root + above
    assert bisect(function, low, high, xtol=xtol) == optimize.bisect(function, low, high, xtol=xtol)


def test_an_end_that_is_a_root_and_ends_of_one_sign():
    assert bisect(lambda x: x, 0.0, 1.0, xtol=1e-9) == 0.0
    assert bisect(lambda x: x - 1, 0.0, 1.0, xtol=1e-9) == 1.0
    with pytest.raises(ValueError, match="one sign at both ends"):
        bisect(lambda x: x + 2, 0.0, 1.0, xtol=1e-9)
