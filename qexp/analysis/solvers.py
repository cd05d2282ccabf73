"""Bits per layer under a budget: one width for each layer, least summed loss.

min sum_l loss[l, w_l]  subject to  sum_l cost[l, w_l] <= budget: a multiple-choice knapsack. `exact` solves it as an integer
program, `dynamic` by merging Pareto fronts, and `greedy` is what people do. All assume that the layers' losses add up; only
running the network shows whether they do.

Shapes: L layers, W widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qexp.base.errors import UserError

MAX_STATES = 2_000_000  # pairs of cost and loss that `dynamic` looks at for one layer


@dataclass(frozen=True)
class Choice:
    """A width for each layer.

    Args:
        widths: [L] positions among the widths.
        loss: their sum.
        cost: their sum, at most the budget.
    """

    widths: tuple[int, ...]
    loss: float
    cost: int


def exact(losses: np.ndarray, costs: np.ndarray, budget: int) -> Choice:
    """The best choice, by `scipy.optimize.milp` (HiGHS, no gap left).

    Args:
        losses: [L, W] float64, finite.
        costs: [L, W] integers, at least 0.
        budget: most that may be spent.

    Raises:
        UserError: the cheapest choice costs more.

    >>> exact(np.array([[9, 1, 0.5], [4, 2, 0]]), np.array([[1, 2, 3], [1, 2, 3]]), 4)
    Choice(widths=(1, 1), loss=3.0, cost=4)
    """
    losses, costs = _checked(losses, costs, budget)
    layers, widths = losses.shape
    scale = np.abs(losses).max() or 1.0
    ones = np.kron(np.eye(layers), np.ones(widths))
    unit = max(int(np.gcd.reduce(np.append(costs.ravel(), budget))), 1)
    rules = [
        LinearConstraint(ones, 1, 1),
        LinearConstraint(costs.ravel()[None] / unit / (budget / unit or 1), -np.inf, 1.0),
    ]
    while True:
        solution = milp(
            losses.ravel() / scale, constraints=rules, bounds=Bounds(0, 1), integrality=1, options={"mip_rel_gap": 0.0}
        )
        assert solution.success, solution.message  # the cheapest choice is feasible
        choice = _choice(solution.x.reshape(layers, widths).argmax(1), losses, costs)
        if choice.cost <= budget:
            return choice
        # The solver's tolerance let it spend a little more: that choice alone is forbidden.
        forbidden = np.zeros((layers, widths))
        forbidden[np.arange(layers), choice.widths] = 1
        rules.append(LinearConstraint(forbidden.ravel()[None], -np.inf, layers - 1))


def greedy(losses: np.ndarray, costs: np.ndarray, budget: int) -> Choice:
    """From the cheapest widths upwards, each step the affordable change that takes away most loss for its cost.

    Args:
        losses: [L, W] float64, finite.
        costs: [L, W] integers, at least 0.
        budget: most that may be spent.

    Raises:
        UserError: the cheapest choice costs more.

    >>> greedy(np.array([[9, 1, 0.5], [4, 2, 0]]), np.array([[1, 2, 3], [1, 2, 3]]), 4)
    Choice(widths=(1, 1), loss=3.0, cost=4)
    """
    losses, costs = _checked(losses, costs, budget)
    rows = np.arange(len(losses))
    chosen = np.lexsort((losses, costs), axis=1)[:, 0]  # of equal cost the one of less loss
    while True:
        gain = losses[rows, chosen][:, None] - losses
        price = costs - costs[rows, chosen][:, None]
        affordable = (gain > 0) & (price <= budget - costs[rows, chosen].sum())
        if not affordable.any():
            return _choice(chosen, losses, costs)
        rate = np.where(affordable, gain / np.maximum(price, 1e-9), -np.inf)
        layer, width = np.unravel_index(int(rate.argmax()), rate.shape)
        chosen[layer] = width


def dynamic(losses: np.ndarray, costs: np.ndarray, budget: int, max_states: int = MAX_STATES) -> Choice | None:
    """The best choice by dynamic programming; None where that takes more than `max_states` pairs for one layer.

    After each layer the Pareto front of (cost, loss) is kept: of two ways to spend as much the worse cannot end in the best.

    Args:
        losses: [L, W] float64, finite.
        costs: [L, W] integers, at least 0.
        budget: most that may be spent.
        max_states: pairs of cost and loss that may be looked at for one layer.

    Raises:
        UserError: the cheapest choice costs more.

    >>> dynamic(np.array([[9, 1, 0.5], [4, 2, 0]]), np.array([[1, 2, 3], [1, 2, 3]]), 4)
    Choice(widths=(1, 1), loss=3.0, cost=4)
    """
    losses, costs = _checked(losses, costs, budget)
    spent, lost = np.zeros(1, np.int64), np.zeros(1)
    rest = np.append(np.cumsum(costs.min(1)[::-1])[::-1], 0)  # that the layers from here on cost at least
    back: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        if len(spent) * len(cost) > max_states:
            return None
        new_spent, new_lost = (spent[:, None] + cost).ravel(), (lost[:, None] + loss).ravel()
        order = np.lexsort((new_lost, new_spent))
        order = order[new_spent[order] <= budget - rest[layer + 1]]
        least = np.minimum.accumulate(new_lost[order])
        front = order[np.append(True, new_lost[order][1:] < least[:-1])]
        spent, lost = new_spent[front], new_lost[front]
        back.append((front // len(cost), front % len(cost)))
    state, chosen = int(lost.argmin()), []
    for parents, widths in reversed(back):
        chosen.append(int(widths[state]))
        state = int(parents[state])
    return _choice(np.array(chosen[::-1]), losses, costs)


def _checked(losses: np.ndarray, costs: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    losses, costs = np.asarray(losses, np.float64), np.asarray(costs, np.int64)
    assert losses.shape == costs.shape and np.isfinite(losses).all() and (costs >= 0).all()
    least = int(costs.min(1).sum())
    if least > budget:
        raise UserError("budget", budget, allowed=f"at least {least}, what the cheapest widths cost")
    return losses, costs


def _choice(chosen: np.ndarray, losses: np.ndarray, costs: np.ndarray) -> Choice:
    rows = np.arange(len(losses))
    return Choice(tuple(int(width) for width in chosen), float(losses[rows, chosen].sum()), int(costs[rows, chosen].sum()))
