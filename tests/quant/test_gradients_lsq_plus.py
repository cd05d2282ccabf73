"""LSQ+ against finite differences of its surrogate, where offsets are no whole number of steps."""

from __future__ import annotations

import pytest
import torch

from qexp.quant.affine import expand
from qexp.quant.gradients import MASKS, fake_quantize_learned
from qexp.quant.scheme_table import code_range


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(value: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64).clone().requires_grad_()


def gradients(output: torch.Tensor, grad: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output, inputs, grad)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_lsq_plus_by_finite_differences(bits, axis, mask):
    """What rounding added to x / s and to -b / s at the point stays as it is while x, s and b move; offsets are off the grid."""
    low, high, h, slack = *code_range("affine", bits), 1e-6, 0.5 * (mask == "rounded")
    scale = torch.tensor([0.37, 0.21, 0.52] if axis else 0.37, dtype=torch.float64)
    zeros = torch.tensor([0.37, -1.29, 0.44] if axis else -0.63, dtype=torch.float64)  # what rounds to a code: its residue counts
    offset = -zeros * scale
    point = normal(40, 3, 5) * 0.5 * 2**bits * 0.37
    columns = [expand(value, axis, point) for value in (scale, offset)]
    zero_error = (-columns[1] / columns[0]).round() + columns[1] / columns[0]

    def inside(x, scale, offset):
        return torch.clamp(x / scale - offset / scale + zero_error, low - slack, high + slack)

    steps = point / columns[0] + (-columns[1] / columns[0]).round()
    error = steps.round().clamp(low, high) - inside(point, *columns)

    def surrogate(x, scale, offset):
        zero_point = -offset / scale + zero_error
        return (inside(x, scale, offset) + error - zero_point) * scale

    kinks = torch.minimum((steps - (low - slack)).abs(), (steps - (high + slack)).abs()) < 1e-4
    assert not kinks.any() and bool((steps > high).any()) and bool((steps < low).any())
    x, s, b = (leaf(value) for value in (point, scale, offset))
    output = fake_quantize_learned(x, s, quant_min=low, quant_max=high, gradient_factor=0.25, axis=axis, mask=mask, offset=b)
    torch.testing.assert_close(output.detach(), surrogate(point, *columns))
    grad = normal(40, 3, 5, seed=1)
    dims = (0, 2) if axis else (0, 1, 2)
    moved = [[(point + way * h, *columns), (point, columns[0] + way * h, columns[1]), (point, columns[0], columns[1] + way * h)]
             for way in (1, -1)]  # fmt: skip
    by_x, by_scale, by_offset = ((surrogate(*up) - surrogate(*down)) / (2 * h) * grad for up, down in zip(*moved, strict=True))
    expected = by_x, 0.25 * by_scale.sum(dims), 0.25 * by_offset.sum(dims)
    for gradient, difference in zip(gradients(output, grad, x, s, b), expected, strict=True):
        torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=1e-6)


def test_an_offset_beyond_the_codes_comes_back_and_moves_no_step():
    """Where -b / s lies beyond the codes the zero point is their end whatever the step; the offset learns as elsewhere."""
    x, grad = normal(500), normal(500, seed=1)
    for value in (-9.3, 9.3):
        s, b = leaf(0.37), leaf(value)
        output = fake_quantize_learned(x, s, quant_min=0, quant_max=7, gradient_factor=1.0, offset=b)
        zero_point = 7.0 if value < 0 else 0.0
        outside = ((x / 0.37 + zero_point <= 0) | (x / 0.37 + zero_point >= 7)).double()
        plain = fake_quantize_learned(
            x, fixed := leaf(0.37), quant_min=-int(zero_point), quant_max=7 - int(zero_point), gradient_factor=1.0
        )
        of_scale, of_offset = gradients(output, grad, s, b)
        torch.testing.assert_close(of_scale, gradients(plain, grad, fixed)[0])
        torch.testing.assert_close(of_offset, (grad * outside).sum())
