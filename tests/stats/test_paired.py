"""Two networks on the same images, against other ways to compute the same."""

import subprocess
import sys
from itertools import product
from math import comb, isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

from qexp.base.errors import UserError
from qexp.stats.paired import (
    compare,
    compare_counts,
    mcnemar,
    mcnemar_power,
    minimum_detectable_effect,
)

COUNTS = [(0, 0), (0, 1), (1, 0), (0, 6), (4, 4), (9, 8), (48, 31), (117, 74), (300, 1)]


def answers(n10, n01, n, seed=0):
    """Correctness of A and B with these flips, at places drawn from the seed."""
    a, b = np.ones(n, bool), np.ones(n, bool)
    b[:n10], a[n10 : n10 + n01] = False, False
    a[n10 + n01 : (n10 + n01 + n) // 2] = b[n10 + n01 : (n10 + n01 + n) // 2] = False
    order = np.random.default_rng(seed).permutation(n)
    return a[order], b[order]


@pytest.mark.parametrize(
    ("n10", "n01", "difference", "low", "high", "p_value"),
    [
        (4, 4, 0.0, -0.30, 0.30, 1.0),
        (9, 8, -0.05, -0.45, 0.35, 1.0),
        (117, 74, -2.15, -3.50, -0.80, 0.0023),
        (48, 31, -0.85, -1.75, 0.00, 0.071),
    ],
)
def test_published_comparisons_at_2000_images(n10, n01, difference, low, high, p_value):
    """Worked on another machine by resampling images; 0.1 points are the ends' Monte Carlo error."""
    paired = compare(*answers(n10, n01, 2000))
    assert (paired.n, paired.n10, paired.n01) == (2000, n10, n01)
    assert isclose(paired.difference, difference, abs_tol=1e-12)
    assert abs(paired.interval.low - low) <= 0.1
    assert abs(paired.interval.high - high) <= 0.1
    assert f"{paired.p_value:.2g}" == f"{p_value:.2g}"


@pytest.mark.parametrize(("n10", "n01"), COUNTS)
def test_mcnemar_agrees_with_statsmodels_scipy_and_the_sum(n10, n01):
    m = n10 + n01
    by_hand = min(1.0, 2 * sum(comb(m, k) for k in range(min(n10, n01) + 1)) / 2**m)
    p_value = float(mcnemar(n10, n01))
    assert isclose(p_value, by_hand, rel_tol=1e-9)
    assert isclose(p_value, reference_mcnemar([[5, n10], [n01, 7]], exact=True).pvalue, rel_tol=1e-9)
    assert m == 0 or isclose(p_value, binomtest(n10, m).pvalue, rel_tol=1e-9)


def test_mcnemar_takes_arrays():
    n10, n01 = np.array(COUNTS).T
    assert mcnemar(n10, n01).tolist() == [float(mcnemar(*pair)) for pair in COUNTS]


@pytest.mark.parametrize(("n10", "n01"), [(3, 7), (5, 5), (10, 1), (0, 9)])
def test_mcnemar_is_the_permutation_test_over_all_exchanges(n10, n01):
    """Under equal accuracy the two answers to an image may be exchanged: all 2^m ways are tried."""
    signs = np.array(list(product((-1, 1), repeat=n10 + n01)))
    as_far = np.abs(signs.sum(1)) >= abs(n01 - n10)
    assert isclose(float(mcnemar(n10, n01)), as_far.mean(), rel_tol=1e-12)


@pytest.mark.parametrize(("n10", "n01"), COUNTS)
def test_the_difference_is_the_mean_of_paired_differences(n10, n01):
    a, b = answers(n10, n01, 1000)
    change = b.astype(float) - a.astype(float)
    paired = compare(a, b)
    assert isclose(paired.difference, 100 * change.mean(), abs_tol=1e-12)
    assert isclose(paired.discordant, 100 * (change != 0).mean(), abs_tol=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 300))
def test_exchanging_the_networks_changes_the_sign_and_nothing_else(n10, n01, num_alike):
    n = n10 + n01 + num_alike
    paired, exchanged = (compare_counts(*flips, n) for flips in ((n10, n01), (n01, n10)))
    assert paired.difference == -exchanged.difference
    assert paired.interval == exchanged.interval.mirrored()
    assert (paired.p_value, paired.discordant) == (exchanged.p_value, exchanged.discordant)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_images_is_of_no_matter(pairs, random):
    a, b = np.array(pairs).T
    random.shuffle(pairs)
    assert compare(a, b) == compare(*np.array(pairs).T)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_a_higher_level_gives_a_wider_interval_around_the_difference(level):
    paired, wider = (compare_counts(117, 74, 2000, level=at_level) for at_level in (level, (1 + level) / 2))
    assert wider.interval.low < paired.interval.low < paired.difference < paired.interval.high < wider.interval.high


@pytest.mark.parametrize(("n10", "n01"), [(0, 2000), (480, 520), (12_000, 12_500), (24_999, 25_001)])
def test_many_flips_against_the_binomial_distribution_of_scipy(n10, n01):
    assert isclose(float(mcnemar(n10, n01)), min(1.0, 2 * binom.cdf(min(n10, n01), n10 + n01, 0.5)), rel_tol=1e-12)


@pytest.mark.parametrize("alpha", [0.05, 1e-4, float(mcnemar(3, 17))])  # the last one is a p that 20 flips can have
@pytest.mark.parametrize("n", [1, 20, 2000])
@pytest.mark.parametrize("discordant", [0.02, 2.0, 100.0])
def test_the_power_is_the_sum_over_all_numbers_of_flips(discordant, n, alpha):
    difference, expected = 0.4 * discordant, 0.0
    for flips in range(n + 1):
        chance = binom.pmf(flips, n, discordant / 100)
        if chance > 1e-14:
            ways = np.arange(flips + 1)  # so many of the flips are to B
            shown = mcnemar(flips - ways, ways) <= alpha
            expected += chance * binom.pmf(ways, flips, (discordant + difference) / (2 * discordant))[shown].sum()
    assert isclose(mcnemar_power(discordant, difference, n, alpha=alpha), expected, abs_tol=1e-10)


def test_no_flips():
    paired = compare(np.ones(500, bool), np.ones(500, bool))
    assert (paired.difference, paired.p_value) == (0.0, 1.0)
    assert paired.interval.high == -paired.interval.low == pytest.approx(100 * 1.96**2 / (500 + 1.96**2), rel=1e-3)


def test_all_images_flip():
    paired = compare(np.ones(500, bool), np.zeros(500, bool))
    assert paired.difference == -100.0
    assert paired.interval.low == -100.0 and paired.interval.high < -98
    assert paired.p_value < 1e-100


def test_one_image():
    same, flipped = compare([1], [1]), compare([0], [1])
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert (flipped.difference, flipped.p_value, flipped.interval.high) == (100.0, 1.0, 100.0)


def test_disagreement_counts_images_that_both_get_wrong():
    label = np.array([0, 1, 2, 3, 4])
    a, b = np.array([0, 1, 9, 9, 9]), np.array([0, 2, 8, 9, 4])
    paired = compare(a == label, b == label, classes_a=a, classes_b=b)
    assert (paired.n10, paired.n01, paired.disagreement) == (1, 1, 60.0)
    assert compare(a == label, b == label).disagreement is None


@pytest.mark.parametrize(
    ("discordant", "n", "alpha"), [(2, 10_000, 0.05), (2, 2000, 0.05), (19, 2000, 0.05), (0.28, 10_000, 0.05), (7, 10_000, 2e-4)]
)
def test_the_minimum_detectable_effect_is_found_four_times_in_five(discordant, n, alpha):
    """Drawn, not computed: 80 % of repetitions to within two points."""
    effect = minimum_detectable_effect(discordant, n, alpha=alpha)
    shares = np.array([discordant - effect, discordant + effect, 2 * (100 - discordant)]) / 200
    n10, n01, _ = np.random.default_rng(0).multinomial(n, shares, size=20_000).T
    assert abs(np.mean(mcnemar(n10, n01) <= alpha) - 0.8) < 0.02


def test_power_by_all_outcomes():
    """All (n10, n01) of 40 images, one by one."""
    n, right_a, right_b = 40, 0.05, 0.2
    power = sum(
        multinomial.pmf([n10, n01, n - n10 - n01], n, [right_a, right_b, 1 - right_a - right_b])
        for n10 in range(n + 1) for n01 in range(n + 1 - n10) if mcnemar(n10, n01) <= 0.05
    )  # fmt: skip
    assert [mcnemar_power(25.0, points, n) for points in (15.0, -15.0)] == pytest.approx([power, power], rel=1e-9)


def test_what_flips_cannot_make_is_no_detectable_effect():
    """Of 1800 images about five flip, and even six of six are the least that is significant."""
    assert minimum_detectable_effect(0.28, 1800) is None and minimum_detectable_effect(0.0, 1800) is None
    assert minimum_detectable_effect(0.28, 10_000) < 0.28
    with pytest.raises(UserError, match=r"difference=0\.78"):
        mcnemar_power(0.28, 0.78, 1800)


INDEX = np.arange(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "correctness of A=no image"),
        (([1, 0], [1, 0, 1]), "images of B=3: allowed is 2, as many as A has"),
        (([0.5, 1], [1, 0]), "correctness of A=other values"),
        (([float("nan"), 1], [1, 0]), "correctness of A=other values"),
        (([[1, 0]], [1, 0]), "an array [n]"),
    ],
)
def test_what_cannot_be_paired_is_refused(arguments, message):
    with pytest.raises(UserError) as caught:
        compare(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"index_a": INDEX, "index_b": INDEX + 1}, "index of B=image 1 at place 0: allowed is image 0"),
        ({"index_a": INDEX, "index_b": INDEX[::-1]}, "same order"),
        ({"index_a": INDEX, "index_b": INDEX[:3]}, "array of 4 integers"),
        ({"index_a": [0, 1, 2, 2], "index_b": [0, 1, 2, 2]}, "an image twice"),
        ({"index_a": INDEX / 2, "index_b": INDEX / 2}, "array of 4 integers"),
        ({"index_a": INDEX}, "index=given for A only"),
        ({"classes_b": INDEX}, "classes=given for B only"),
        ({"classes_a": INDEX, "classes_b": INDEX[:3]}, "images of the classes of B=3"),
        ({"level": 1.0}, "level=1.0"),
    ],
)
def test_what_does_not_fit_is_refused(extra, message):
    with pytest.raises(UserError) as caught:
        compare([1, 1, 0, 0], [1, 0, 1, 0], **extra)
    assert message in str(caught.value)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(UserError):
        compare_counts(*counts)


def test_the_same_images_pass():
    assert compare([1, 1, 0, 0], [1, 0, 1, 0], index_a=INDEX, index_b=list(INDEX)).n == 4


def test_the_room_needs_no_torch():
    code = "import sys\nfrom qexp.stats import family, noninferiority, paired, seeds\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.stdout == "False\n", done.stderr
