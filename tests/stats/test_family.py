"""Families of tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests

from qexp.base.errors import UserError
from qexp.stats.family import adjust, holm_adjusted

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


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=8))
def test_weighted_holm_rejects_as_step_by_step(family):
    """As Holm defines it: the test of the smallest p/w against alpha w/(sum of weights left), until one does not pass."""
    values, weights = (np.array(column) for column in zip(*family, strict=True))
    adjusted = holm_adjusted(values, weights)
    for alpha in (0.05, 0.3):
        left, rejected = list(range(len(values))), set()
        while left:
            first = min(left, key=lambda number: values[number] / weights[number])
            limit = alpha * weights[first] / weights[left].sum()
            if values[first] > limit * (1 - 1e-12):
                break
            rejected.add(first)
            left.remove(first)
        assert rejected <= set(np.flatnonzero(adjusted <= alpha)) <= {*rejected, *np.flatnonzero(np.isclose(adjusted, alpha))}
    assert np.array_equal(holm_adjusted(np.stack([values, values]), weights)[1], adjusted)
