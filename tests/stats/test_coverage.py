"""Do intervals cover what they say? Repetitions are drawn from a known truth; what is tested is the package's own functions."""

from functools import cache

import numpy as np
import pytest

from qexp.stats.interval import wilson
from qexp.stats.noninferiority import non_inferiority
from qexp.stats.paired import compare_counts
from qexp.stats.score import score_interval
from qexp.stats.seeds import hierarchical_bootstrap, over_seeds

REPETITIONS = 2000


def repetitions(n, right_a, right_b):
    """(n10, n01) of test sets drawn anew, where these shares are right in A alone and in B alone."""
    shares = [right_a, right_b, 1 - right_a - right_b]
    return np.random.default_rng(5).multinomial(n, shares, size=REPETITIONS)[:, :2].tolist()


def coverage(interval, n, right_a, right_b):
    """Share of repetitions whose interval holds the true difference; equal counts are computed once."""
    once = cache(interval)
    truth = 100 * (right_b - right_a)
    return np.mean([truth in once(n10, n01, n) for n10, n01 in repetitions(n, right_a, right_b)])


@pytest.mark.parametrize(("n", "right_a", "right_b"), [(2000, 0.02, 0.02), (2000, 0.06, 0.04), (10_000, 0.03, 0.02)])
def test_the_score_interval_covers(n, right_a, right_b):
    assert 0.93 <= coverage(score_interval, n, right_a, right_b) <= 0.97


def test_with_few_flips_the_score_interval_covers():
    assert coverage(score_interval, 2000, 0.001, 0.0005) >= 0.95


@pytest.mark.parametrize("accuracy", [0.5, 0.92, 0.99])
def test_wilson_covers(accuracy):
    right = np.random.default_rng(2).binomial(2000, accuracy, size=REPETITIONS).tolist()
    once = cache(wilson)
    assert 0.93 <= np.mean([100 * accuracy in once(count, 2000) for count in right]) <= 0.97


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_t_interval_covers_the_mean_over_seeds(count):
    drawn = np.random.default_rng(1).normal(92.0, 0.3, size=(REPETITIONS, count))
    assert 0.93 <= np.mean([92.0 in over_seeds(values).interval for values in drawn]) <= 0.97


@pytest.mark.parametrize(("n", "right_a", "right_b"), [(2000, 0.02, 0.015), (2000, 0.0055, 0.0005), (10_000, 0.005, 0.0)])
def test_a_loss_of_the_margin_passes_as_none_in_about_five_of_a_hundred(n, right_a, right_b):
    """The true loss is 0.5 points, so that every claim of non-inferiority is a mistake."""

    @cache
    def holds(n10, n01):
        return non_inferiority(compare_counts(n10, n01, n)).holds

    assert 0.02 <= np.mean([holds(*counts) for counts in repetitions(n, right_a, right_b)]) <= 0.06


def test_the_hierarchical_bootstrap_covers_new_seeds_and_new_images():
    """Images differ in difficulty and seeds in skill; the truth is the mean over very many of both."""

    def chance(difficulty, skill):
        return 1 / (1 + np.exp(-(difficulty + skill)))

    generator = np.random.default_rng(3)
    truth = 100 * chance(generator.normal(2.5, 2, 400_000), generator.normal(0, 0.3, 400_000)).mean()
    inside = 0
    for _ in range(300):
        skill, difficulty = generator.normal(0, 0.3, (5, 1)), generator.normal(2.5, 2, 500)
        right = generator.random((5, 500)) < chance(difficulty, skill)
        inside += truth in hierarchical_bootstrap(right, draws=500)[1]
    assert 0.91 <= inside / 300 <= 0.99


def test_a_paired_comparison_is_sharper_than_two_lone_intervals():
    paired = compare_counts(40, 10, 2000)
    assert 0.0 not in paired.interval
    assert wilson(1860, 2000).low < wilson(1830, 2000).high
