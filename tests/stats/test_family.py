"""Families of tests, and which variants cannot be told from the best."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control
from statsmodels.stats.multitest import multipletests

from qexp.base.errors import UserError
from qexp.stats.family import adjust, in_words, indistinguishable_from, indistinguishable_from_best

P_VALUES = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}


def test_holm_by_hand():
    # sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, 0.04, and none below the one before
    assert adjust(P_VALUES) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


def test_benjamini_hochberg_by_hand():
    # sorted: 4 x 0.005, 2 x 0.01, 4/3 x 0.03, 0.04
    assert adjust(P_VALUES, method="benjamini_hochberg") == pytest.approx({"a": 0.02, "b": 0.04, "c": 0.04, "d": 0.02})


@settings(max_examples=15)  # statsmodels collects garbage on every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_to_the_bit_as_statsmodels(values):
    family = {str(number): value for number, value in enumerate(values)}
    assert list(adjust(family).values()) == multipletests(values, method="holm")[1].tolist()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_adjusted_values_against_scipy_and_the_definition(values):
    family = {str(number): value for number, value in enumerate(values)}
    order = np.argsort(values, kind="stable")
    holm = np.maximum.accumulate((np.array(values)[order] * np.arange(len(values), 0, -1)).clip(max=1))
    assert np.array(list(adjust(family).values()))[order] == pytest.approx(holm)
    adjusted = list(adjust(family, method="benjamini_hochberg").values())
    assert adjusted == pytest.approx(false_discovery_control(values).tolist())


def test_an_empty_family_and_a_single_test():
    assert adjust({}) == {}
    assert adjust({"w8": 0.03}) == {"w8": 0.03}


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_p_value_out_of_range_is_refused(value):
    with pytest.raises(UserError, match="p value of w8"):
        adjust({"w8": value})


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="Did you mean holm"):
        adjust(P_VALUES, method="holms")


def sweep(n=10_000):
    """Two names of one network, one that loses two points, one that loses a little, and the float network, at 10 000 images."""
    generator = np.random.default_rng(0)
    fp32 = generator.random(n) < 0.92

    def lose(share_wrong, share_right):
        chance = generator.random(n)
        return np.where(fp32, chance >= share_wrong, chance < share_right)

    w8 = lose(0.004, 0.04)
    return {"fp32": fp32, "w8": w8, "w8_again": w8.copy(), "w4": lose(0.035, 0.15)}


def test_equal_variants_are_indistinguishable_and_two_points_are_seen():
    right = sweep()
    assert 1.5 < 100 * (right["fp32"].mean() - right["w4"].mean()) < 2.5
    from_float = indistinguishable_from("fp32", right)
    assert set(from_float.indistinguishable) == {"w8", "w8_again"}
    assert from_float.different == ("w4",)
    assert from_float.num_tests == 3
    from_best = indistinguishable_from_best(right)
    assert from_best.different == ("w4",)
    assert from_best.num_tests == 6
    pair = indistinguishable_from_best({name: right[name] for name in ("w8", "w8_again")})
    assert pair.p_values == {"w8_again": 1.0}
    assert (pair.reference, pair.indistinguishable, pair.differences) == ("w8", ("w8_again",), {"w8_again": 0.0})


def test_p_values_are_those_of_single_tests_adjusted():
    right = sweep(2000)
    names = list(right)
    family = {}
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            n10, n01 = np.sum(right[first] & ~right[second]), np.sum(~right[first] & right[second])
            family[first, second] = binomtest(int(n10), int(n10 + n01)).pvalue if n10 + n01 else 1.0
    standing = indistinguishable_from_best(right)
    expected = adjust(family)
    against_reference = {
        next(iter(set(pair) - {standing.reference})): value for pair, value in expected.items() if standing.reference in pair
    }
    assert standing.p_values == pytest.approx(against_reference)
    against = {pair[1]: value for pair, value in family.items() if pair[0] == "fp32"}
    assert indistinguishable_from("fp32", right).p_values == pytest.approx(adjust(against))


def test_the_order_of_variants_changes_no_p_value():
    right = sweep(2000)
    standing = indistinguishable_from_best(right)
    reordered = indistinguishable_from_best(dict(sorted(right.items(), key=lambda item: item[0] == standing.reference)))
    assert reordered.p_values == standing.p_values


def test_a_difference_that_holm_takes_back():
    """p = 0.031 alone; as one of two planned tests 0.0625."""
    base = np.ones(100, bool)
    worse, same = base.copy(), base.copy()
    worse[:6] = False
    assert indistinguishable_from("fp32", {"fp32": base, "w4": worse}).different == ("w4",)
    differing = same.copy()
    differing[50:56] = False
    assert indistinguishable_from("fp32", {"fp32": base, "w4": worse, "w5": differing}).different == ()


def test_the_sentences():
    images = np.arange(1000)
    right = {"w8": images < 900, "w7": images < 899, "w6": images < 898, "w4": images < 850}
    text = in_words(indistinguishable_from_best(right))
    assert text == (
        "2 of 3 cannot be told from w8, the best (90.00 %): w7 (-0.10), w6 (-0.20); worse: w4 (-5.00) "
        "(n = 1000, exact McNemar, Holm over 6 tests, alpha 0.05)."
    )
    alone = in_words(indistinguishable_from_best({"w8": images < 900}))
    assert alone == "Nothing is compared with w8, the best (90.00 %) (n = 1000)."
    none = in_words(indistinguishable_from("w4", {name: right[name] for name in ("w4", "w8")}))
    assert none == (
        "0 of 1 cannot be told from w4 (85.00 %); different: w8 (+5.00) (n = 1000, exact McNemar, Holm over 1 test, alpha 0.05)."
    )
    many = in_words(indistinguishable_from_best({f"v{number}": images < 900 for number in range(12)}))
    assert "11 of 11 cannot be told from v0" in many and "v8 (+0.00) and 3 more" in many


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: indistinguishable_from_best({}), "number of variants=0"),
        (lambda: indistinguishable_from("fp23", {"fp32": [1], "w8": [1]}), "Did you mean fp32"),
        (lambda: indistinguishable_from_best({"a": [1, 0], "b": [1]}), "images of b=1"),
        (lambda: indistinguishable_from_best({"a": [], "b": []}), "correctness of a=no image"),
        (lambda: indistinguishable_from_best({"a": [1], "b": [1]}, index={"a": [0], "b": [1]}), "index of b=image 1"),
        (lambda: indistinguishable_from_best({"a": [1], "b": [1]}, index={"a": [0]}), "index=b"),
        (lambda: indistinguishable_from_best({"a": [1], "b": [1]}, alpha=0), "alpha=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value)
