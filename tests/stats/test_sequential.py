"""A test that is looked at after every block errs no more often than it says, and decides with fewer images where it can."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from qexp.base.errors import UserError
from qexp.stats.score import score
from qexp.stats.sequential import SequentialTest, confidence_sequence, different, log_capital, non_inferior

DRAWS, BLOCK, NUM_IMAGES = 2000, 100, 10_000
LIMIT = -math.log(0.05)
LEAST_SIGNIFICANT = int(binom.isf(0.01, DRAWS, 0.05)) + 1  # of 2000 errors, more than a rate of 5 % explains at 1 %
# Shares of images that flip (lost, won): a loss of exactly half a point, by as few flips as make it up to a fifth of all images.
ON_THE_MARGIN = [(0.005, 0.0), (0.0075, 0.0025), (0.015, 0.01), (0.0525, 0.0475), (0.105, 0.1)]


def drawn(lost, won, *, block=BLOCK, num_images=NUM_IMAGES, seed=20_260_101):
    """[draws, blocks] lost and won so far, and [blocks] images so far, of networks that flip so often."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(block, [lost, won, 1 - lost - won], size=(DRAWS, num_images // block)).cumsum(1)
    return counts[..., 0], counts[..., 1], block * np.arange(1, num_images // block + 1)


def ever(capital, limit=LIMIT):
    return int((capital >= limit).any(1).sum())


@pytest.mark.parametrize("shares", ON_THE_MARGIN)
@pytest.mark.parametrize("block", [10, 100])
def test_a_loss_of_the_margin_is_seldom_taken_for_less_or_for_more(shares, block):
    lost, won, n = drawn(*shares, block=block, num_images=NUM_IMAGES if block == BLOCK else 2000)
    assert ever(log_capital(lost, won, n, -0.5)) < LEAST_SIGNIFICANT
    assert ever(log_capital(won, lost, n, 0.5)) < LEAST_SIGNIFICANT


@pytest.mark.parametrize("share", [0.0005, 0.005, 0.05])
def test_equal_networks_are_seldom_called_different(share):
    lost, won, n = drawn(share, share)
    both = np.maximum(log_capital(lost, won, n, 0.0), log_capital(won, lost, n, 0.0))
    assert ever(both, -math.log(0.025)) < LEAST_SIGNIFICANT


def test_this_simulation_finds_a_test_that_errs_too_often():
    """The score test at a fixed n, looked at after every block: what people do."""
    lost, won, n = drawn(0.015, 0.01)
    errors = sum(
        any(score(int(a), int(b), int(c), -0.5) > norm.isf(0.05) for a, b, c in zip(row_lost, row_won, n, strict=True))
        for row_lost, row_won in zip(lost[:200], won[:200], strict=True)
    )
    assert errors > binom.isf(0.01, 200, 0.05)


def test_the_power_is_that_of_a_fixed_n_or_near_and_clear_cases_end_early():
    def decided(shares, null=-0.5, mirrored=False):
        lost, won, n = drawn(*shares)
        capital = log_capital(won, lost, n, -null) if mirrored else log_capital(lost, won, n, null)
        done = capital >= LIMIT
        return done.any(1).mean(), np.where(done.any(1), n[done.argmax(1)], NUM_IMAGES).mean()

    power, images = decided((0.001, 0.001))
    assert power > 0.99 and images < 1600
    power, images = decided((0.01, 0.01))  # at a fixed n of 10 000: 0.97
    assert power > 0.7 and images < 6500
    power, images = decided((0.05, 0.01), mirrored=True)
    assert power == 1.0 and images < 700
    power, images = decided((0.7, 0.02), mirrored=True)
    assert power == 1.0 and images == BLOCK


def test_the_interval_covers_at_every_look_at_once():
    """It lacks a difference where one of the two bets rejects it, as a test below shows."""
    lost, won, n = drawn(0.02, 0.01)
    both = np.maximum(log_capital(lost, won, n, -1.0), log_capital(won, lost, n, 1.0))
    assert ever(both, -math.log(0.025)) < LEAST_SIGNIFICANT


def test_the_capital_is_a_fair_game_image_by_image():
    """Exactly: whatever happened before, the next image is worth what one has, where the difference is the null."""
    for lost, won in ((0, 0), (3, 1), (0, 7)):
        n, share = 50, 0.02
        for null in (-0.5, 0.0, 1.0):
            down = share / 2 - null / 200
            up = share / 2 + null / 200
            now = math.exp(log_capital(lost, won, n, null))
            chances = ((down, (1, 0)), (up, (0, 1)), (1 - down - up, (0, 0)))
            later = sum(chance * math.exp(log_capital(lost + a, won + b, n + 1, null)) for chance, (a, b) in chances)
            assert later == pytest.approx(now, rel=1e-12)


def test_without_a_flip_it_takes_few_more_images_than_the_exact_test():
    exact = math.ceil(math.log(0.05) / math.log(1 - 0.005))
    seen = non_inferior(0.5).run((0, 0, 1) for _ in range(5000))
    assert (exact, seen.verdict, seen.n) == (598, "above", 797)


def test_a_decided_test_takes_no_more_blocks():
    taken = []

    def blocks():
        for number in range(100):
            taken.append(number)
            yield (80, 0, 100)

    seen = non_inferior(0.5).run(blocks())
    assert seen.verdict == "below" and seen.n == 100 and taken == [0]
    assert seen.difference == -80.0 and seen.p_below <= 0.05 < seen.p_above


@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 5000), st.floats(0.1, 5))
def test_exchanging_the_networks_exchanges_the_verdicts(n10, n01, n, margin):
    test = SequentialTest(null=-margin, alpha_above=0.05, alpha_below=0.05)
    other = SequentialTest(null=margin, alpha_above=0.05, alpha_below=0.05)
    one, two = test.look(n10, n01, n), other.look(n01, n10, n)
    assert (one.p_above, one.p_below) == (two.p_below, two.p_above)
    assert {one.verdict, two.verdict} in ({"open"}, {"above", "below"})


@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 5000))
def test_the_interval_is_the_differences_that_are_not_rejected(n10, n01, n):
    interval = confidence_sequence(n10, n01, n)
    assert interval.low <= 100 * (n01 - n10) / n <= interval.high
    for null in (interval.low - 0.01, interval.high + 0.01):
        if -100 < null < 100:
            test = SequentialTest(null=null, alpha_above=0.025, alpha_below=0.025)
            assert test.look(n10, n01, n).verdict == ("above" if null < interval.low else "below")


def test_giving_up_loses_no_network_that_needs_only_quiet_images():
    test = non_inferior(0.5)
    seen = test.look(60, 30, 5000)
    assert seen.verdict == "open" and test.out_of_reach(seen, 10_000)
    assert test.look(60, 30, 10_000).verdict == "open"
    near = test.look(20, 20, 1000)
    assert not test.out_of_reach(near, 10_000)
    assert test.run([(20, 20, 1000), (0, 0, 9000)]).verdict == "above"
    assert test.run([(60, 30, 5000), (0, 0, 5000)], num_images=10_000).n == 5000
    assert test.run([(60, 30, 5000), (0, 0, 5000)]).n == 10_000


def test_two_sided_it_says_which_way():
    assert different().look(60, 20, 10_000).verdict == "below"
    assert different().look(20, 60, 10_000).verdict == "above"
    assert different().look(20, 25, 10_000).verdict == "open"


@pytest.mark.parametrize("make", [lambda: non_inferior(0), lambda: non_inferior(100), lambda: different(alpha=0)])
def test_what_is_no_margin_and_no_rate_is_refused(make):
    with pytest.raises(UserError):
        make()


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="n10, n01=3, 1"):
        non_inferior(0.5).look(3, 1, 2)
