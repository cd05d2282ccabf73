"""Claims of no loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_paired

from qexp.base.errors import UserError
from qexp.stats.noninferiority import non_inferiority
from qexp.stats.paired import compare_counts


def test_a_large_p_value_is_no_claim_of_equality():
    """Five flips of 200: the test sees nothing, and a loss of half a point is far from excluded."""
    paired = compare_counts(3, 2, 200)
    assert paired.p_value == 1.0
    assert not non_inferiority(paired).holds


def test_a_real_but_small_loss_is_both_different_and_non_inferior():
    paired = compare_counts(26, 6, 10_000)
    claim = non_inferiority(paired)
    assert paired.p_value < 0.01
    assert claim.holds and claim.equivalent
    assert 0.2 < claim.loss_bound < 0.4


def test_the_published_eight_bit_and_four_bit_networks():
    assert non_inferiority(compare_counts(4, 4, 2000)).holds
    assert not non_inferiority(compare_counts(117, 74, 2000)).holds


def test_no_flips_are_proof_only_with_enough_images():
    holds = {n: non_inferiority(compare_counts(0, 0, n)).holds for n in (1, 100, 500, 600, 10_000)}
    assert holds == {1: False, 100: False, 500: False, 600: True, 10_000: True}


def test_a_clear_gain_is_non_inferior_and_not_equivalent():
    claim = non_inferiority(compare_counts(10, 210, 10_000))
    assert claim.holds and not claim.equivalent
    assert claim.loss_bound < 0
    assert claim.p_gain > 0.99


def test_against_the_paired_tost_of_statsmodels():
    """A t test, whose variance is not that of the hypothesis; with many flips and images this does not matter."""
    n10, n01, n = 400, 390, 50_000
    a, b = np.ones(n), np.ones(n)
    b[:n10], a[n10 : n10 + n01] = 0, 0
    claim = non_inferiority(compare_counts(n10, n01, n), margin=0.15)
    expected, lower, upper = ttost_paired(b, a, -0.0015, 0.0015)  # (B - A) above -margin, and below it
    assert claim.p_value == pytest.approx(lower[1], rel=0.05)
    assert claim.p_gain == pytest.approx(upper[1], rel=0.05)
    assert max(claim.p_value, claim.p_gain) == pytest.approx(expected, rel=0.05)


@given(st.integers(0, 80), st.integers(0, 80), st.integers(1, 5000), st.sampled_from([0.01, 0.05, 0.1]))
def test_the_bound_and_the_p_value_say_the_same(n10, n01, num_alike, alpha):
    paired = compare_counts(n10, n01, n10 + n01 + num_alike)
    claim = non_inferiority(paired, alpha=alpha)
    assert claim.holds == (claim.p_value < alpha)
    assert claim.equivalent == (max(claim.p_value, claim.p_gain) < alpha)


@pytest.mark.parametrize(("key", "value"), [("margin", 0.0), ("margin", -1.0), ("alpha", 0.5), ("alpha", 0.0)])
def test_margins_and_rates_that_make_no_sense_are_refused(key, value):
    with pytest.raises(UserError, match=key):
        non_inferiority(compare_counts(1, 1, 100), **{key: value})
