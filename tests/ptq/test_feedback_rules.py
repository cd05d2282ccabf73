"""GPTQ, GPFQ and Qronos: each against what its definition says, worked out from the samples."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from qexp.ptq.feedback_rules import damp_, gpfq, gptq, in_order, qronos, revive_, settle

GRID = torch.arange(-4, 5, dtype=torch.float64) * 0.5


def samples(outputs=3, size=8, count=60):
    """Weights, inputs of the float network, and those inputs as the quantized one has them: near, and not independent."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, size, generator=generator, dtype=torch.float64)
    x = x + 2 * torch.randn(count, 1, generator=generator, dtype=torch.float64) + 0.3  # what all inputs have in common
    moved = 0.8 * x + 0.8 * torch.randn(count, size, generator=generator, dtype=torch.float64)
    return 0.6 * torch.randn(outputs, size, generator=generator, dtype=torch.float64), x, moved


def nearest(values):
    return GRID[(values.unsqueeze(-1) - GRID).abs().argmin(-1)]


def settled(rule, weight, x, moved):
    """What a rule makes of one group of inputs."""
    chosen = torch.zeros(weight.shape)

    def round_column(values, column):
        chosen[:, column] = nearest(values.double())[0].float()
        return chosen[None, :, column]

    settle(rule(weight[None], (moved.T @ moved)[None] / len(x), (moved.T @ x)[None] / len(x)), round_column)
    return chosen.double()


def least_squares(inputs, target):
    """The rows b that make |target - b inputs'|^2 least."""
    return torch.linalg.lstsq(inputs, target.T).solution.T


def test_gptq_is_optimal_brain_quantization_in_a_fixed_order():
    """After each column the free ones become the least squares solution: Frantar and Alistarh 2022, equation 3, order given."""
    weight, _, moved = samples()
    rest, chosen = weight.clone(), torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        chosen[:, column] = nearest(rest[:, column])
        settled_part = chosen[:, : column + 1] @ moved[:, : column + 1].T
        if column + 1 < weight.shape[1]:
            rest[:, column + 1 :] = least_squares(moved[:, column + 1 :], weight @ moved.T - settled_part)
    assert torch.equal(settled(gptq, weight, moved, moved), chosen)
    assert not torch.equal(chosen, nearest(weight))


def test_gpfq_takes_the_least_of_the_grid_at_every_step():
    weight, x, moved = samples()
    chosen = torch.zeros_like(weight)
    for row, column in product(range(len(weight)), range(weight.shape[1])):
        wanted = weight[row, : column + 1] @ x[:, : column + 1].T
        before = chosen[row, :column] @ moved[:, :column].T
        errors = [(wanted - before - value * moved[:, column]).square().sum() for value in GRID]
        chosen[row, column] = GRID[torch.stack(errors).argmin()]
    assert torch.equal(settled(gpfq, weight, x, moved), chosen)


def test_qronos_corrects_for_the_inputs_first_and_then_diffuses_errors():
    """Equations 3 to 6 of the paper, each by least squares over the samples."""
    weight, x, moved = samples()
    target, chosen, rest = weight @ x.T, torch.zeros_like(weight), weight.clone()
    for row in range(len(weight)):  # the first column, by trying every value
        errors = [(target[row] - value * moved[:, 0] - weight[row, 1:] @ moved[:, 1:].T).square().sum() for value in GRID]
        chosen[row, 0] = GRID[torch.stack(errors).argmin()]
    rest[:, 1:] = least_squares(moved[:, 1:], target - chosen[:, :1] @ moved[:, :1].T)
    for column in range(1, weight.shape[1]):
        chosen[:, column] = nearest(rest[:, column])
        left = (rest[:, column] - chosen[:, column])[:, None] @ moved[:, column][None]
        if column + 1 < weight.shape[1]:
            rest[:, column + 1 :] += least_squares(moved[:, column + 1 :], left)
    assert torch.equal(settled(qronos, weight, x, moved), chosen)
    assert not torch.equal(settled(gptq, weight, moved, moved), chosen)


def test_without_a_difference_between_the_inputs_qronos_is_gptq():
    weight, _, moved = samples()
    assert torch.equal(settled(qronos, weight, moved, moved), settled(gptq, weight, moved, moved))


def moments(x, moved):
    return (moved.T @ moved)[None], (moved.T @ x)[None]


def test_damping_is_a_penalty_on_the_weights_change():
    """As if each input had a sample of its own, of size sqrt(l) in both networks."""
    weight, x, moved = samples()
    square, cross = moments(x, moved)
    own = (0.1 * square[0].diagonal().mean()).sqrt() * torch.eye(8, dtype=torch.float64)
    assert damp_(square, cross, damping=0.1).tolist() == [0.1]
    augmented = [torch.cat([part, own]) for part in (moved, x)]
    assert torch.allclose(square[0], augmented[0].T @ augmented[0])
    assert torch.allclose(cross[0], augmented[0].T @ augmented[1])


def test_damping_ends_where_nothing_can_be_factored():
    with pytest.raises(ArithmeticError, match="cannot be factored with any damping"):
        damp_(torch.full((1, 3, 3), float("nan"), dtype=torch.float64), damping=0.01)


def test_what_cannot_be_factored_is_damped_more_and_dead_inputs_are_rounded_to_nearest():
    weight, x, moved = samples()
    twins = moved[:, [0, 0, 1, 2, 3, 4, 5, 6]].clone()
    assert damp_(*moments(x, twins), damping=0.0) >= 1e-6
    twins[:, 3] = 0
    square, cross = moments(x, twins)
    revive_(square, cross)
    damp_(square, cross, damping=0.0)
    for rule in (gptq, gpfq, qronos):
        made = rule(weight[None], square, cross)
        assert torch.allclose(made.base[0, :, 3], weight[:, 3].float(), atol=1e-4), rule
        assert made.feedback[0, :3, 3].abs().max() < 1e-5, rule


def test_a_singular_group_is_damped_alone():
    _, x, moved = samples()
    alone = [moments(x, moved), moments(x, moved[:, [0, 0, 1, 2, 3, 4, 5, 6]])]
    square, cross = (torch.cat(parts) for parts in zip(*alone, strict=True))
    used = damp_(square, cross, damping=0.0)
    assert used[0] == 0 and used[1] >= 1e-6
    for group, (own_square, own_cross) in enumerate(alone):
        assert group == 1 or (torch.equal(square[0], own_square[0]) and torch.equal(cross[0], own_cross[0]))
        assert damp_(own_square, own_cross, damping=0.0) == used[group]
        assert torch.equal(square[group], own_square[0]) and torch.equal(cross[group], own_cross[0])


def test_each_group_is_put_in_its_own_order_and_back():
    matrix = torch.arange(18.0).reshape(2, 3, 3)
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    both = in_order(matrix, order, 1, 2)
    assert torch.equal(both[0], matrix[0][[2, 0, 1]][:, [2, 0, 1]]) and torch.equal(both[1], matrix[1][[1, 2, 0]][:, [1, 2, 0]])
    assert torch.equal(in_order(both, order.argsort(1), 1, 2), matrix)


def test_columns_beyond_a_block_are_told_what_is_left_over(monkeypatch):
    weight, x, moved = samples(size=9)
    whole = settled(gpfq, weight, x, moved)
    monkeypatch.setattr("qexp.ptq.feedback_rules._BLOCK", 2)
    assert torch.equal(settled(gpfq, weight, x, moved), whole)
