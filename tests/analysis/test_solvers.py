"""Bits under a budget: three solvers, and brute force over every combination."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp.analysis.solvers import dynamic, exact, greedy
from qexp.base.errors import UserError

WIDTHS = 3


@st.composite
def problems(draw):
    """Up to five layers at three widths, and a budget that the cheapest widths meet."""
    layers = draw(st.integers(1, 5))
    cells = layers * WIDTHS
    losses = draw(st.lists(st.integers(-20, 1000), min_size=cells, max_size=cells))
    costs = draw(st.lists(st.integers(0, 60), min_size=cells, max_size=cells))
    losses, costs = (np.array(values).reshape(layers, WIDTHS) for values in (losses, costs))
    least, most = int(costs.min(1).sum()), int(costs.max(1).sum())
    return losses / 100, costs, draw(st.integers(least, most + 3))


def brute_force(losses, costs, budget):
    rows = range(len(losses))
    combinations = itertools.product(range(WIDTHS), repeat=len(losses))
    return min(
        sum(losses[row, width] for row, width in zip(rows, widths_chosen, strict=True))
        for widths_chosen in combinations
        if sum(costs[row, width] for row, width in zip(rows, widths_chosen, strict=True)) <= budget
    )


@given(problems())
def test_exact_and_dynamic_find_the_least_sum_and_greedy_is_never_below(problem):
    losses, costs, budget = problem
    best = brute_force(losses, costs, budget)
    for solve in (exact, dynamic, greedy):
        choice = solve(losses, costs, budget)
        assert choice.cost <= budget
        rows = np.arange(len(losses))
        assert choice.loss == pytest.approx(losses[rows, list(choice.widths)].sum(), abs=1e-12)
        assert choice.cost == costs[rows, list(choice.widths)].sum()
        if solve is greedy:
            assert choice.loss >= best - 1e-9
        else:
            assert choice.loss == pytest.approx(best, abs=1e-9)


def test_greedy_is_caught_by_a_large_step():
    """The best rate first leaves no room for the layer that matters most."""
    losses, costs = np.array([[10.0, 9.0], [100.0, 0.0]]), np.array([[0, 1], [0, 110]])
    assert greedy(losses, costs, 110).loss == 109.0
    assert exact(losses, costs, 110).loss == 10.0


def test_a_network_s_bit_operations_are_kept_to_the_last_one():
    """Costs of billions, a budget that one more operation would break: the solver's tolerance is not spent."""
    rng = np.random.default_rng(0)
    widths = np.array([2, 3, 4, 5, 6, 8])
    macs = rng.integers(10**5, 10**7, size=20) * 7 + 1
    costs = macs[:, None] * widths * 32
    losses = rng.lognormal(size=(20, 1)) * 4.0 ** -widths[None]
    reached = exact(losses, costs, int(costs[:, 2].sum()))
    cheaper = exact(losses, costs, reached.cost - 1)
    assert reached.cost <= costs[:, 2].sum()
    assert cheaper.cost < reached.cost and cheaper.loss >= reached.loss
    assert dynamic(losses[:8], costs[:8], int(costs[:8, 2].sum())).loss == pytest.approx(
        exact(losses[:8], costs[:8], int(costs[:8, 2].sum())).loss, rel=1e-9
    )


@pytest.mark.parametrize("solve", [exact, greedy, dynamic])
def test_a_budget_that_nothing_meets_is_refused(solve):
    with pytest.raises(UserError, match="at least 3"):
        solve(np.zeros((2, 2)), np.array([[1, 5], [2, 5]]), 2)


def test_dynamic_programming_says_when_it_is_too_much():
    costs = np.cumsum(np.full((6, 3), 7), 1) + np.arange(6)[:, None] ** 3
    assert dynamic(-costs.astype(float), costs, int(costs.sum()), max_states=20) is None
