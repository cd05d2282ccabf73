"""GPTQ, GPFQ and Qronos: how the codes of a weight follow from second moments of its inputs, one input after another.

Legend: G groups, O and K output channels and weights of each output channel within a group; w [G, O, K] the float weight, q its
quantized values; x~ a row of inputs as the quantized network has it, x as the float network has it; H = E[x~ x~'], C = E[x~ x'],
both [G, K, K]; Q rounds to the nearest value of the grid.

All three settle the columns in order, and each is told what the columns before it have left over:

    q_t = Q(base_t - sum_{s<t} q_s A[s, t])

They differ in `base` and in the strictly upper `A`, which `Rule` holds. H = U D U' with U unit upper triangular takes the place
of GPTQ's inverse and its Cholesky factor: the quadratic form is (w - q) H (w - q)' = sum_t D_t ((w - q) U)_t^2, so that, columns
behind t being free, q_t = Q(w_t + sum_{s<t} (w_s - q_s) U[s, t]) makes its term least. The numbers are GPTQ's (Chee et al. 2023,
arXiv:2307.13304, theorem 6), with one factorization for its three. Rejected: updating all columns behind the present one as the
papers write it, which reads and writes the weight K times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 128  # columns; what those before a block have left over is one product
_MIN_DAMPING = 1e-6  # relative to the mean diagonal, where H cannot be factored with less
_RAISES = 12  # from 1e-6 to 1e5; with l = K times the mean diagonal every finite H is far from singular
_MIN_OWN = 1e-7  # of an input's E[x~^2]: below it is the error of products in float32

RoundColumn = Callable[[Tensor, int], Tensor]  # values [G, O] of column t -> the nearest of the grid


@dataclass(frozen=True)
class Rule:
    """What a method makes of a layer.

    Args:
        base: [G, O, K] float32.
        feedback: A, [G, K, K] float32, of which only what lies above the diagonal is read.
    """

    base: Tensor
    feedback: Tensor


def gptq(weight: Tensor, square: Tensor, cross: Tensor) -> Rule:
    """The rule of min E|w x~ - q x~|^2: base = w U, A = U.

    Args:
        weight: w, [G, O, K] float64.
        square: H, [G, K, K] float64, positive definite.
        cross: not read.

    Source: Frantar et al. 2023, arXiv:2210.17323, section 3 and algorithm 1.
    """
    unit = _unit_upper(_upper(square))
    return _rule(weight @ unit, unit)


def gpfq(weight: Tensor, square: Tensor, cross: Tensor) -> Rule:
    """The rule of greedy path following: column t makes E|sum_{s<=t} w_s x_s - q_s x~_s|^2 least, later columns not foreseen.

    base_t = sum_{s<=t} w_s C[t, s] / H[t, t],  A[s, t] = H[s, t] / H[t, t]

    Args:
        weight: w, [G, O, K] float64.
        square: H, [G, K, K] float64, with a positive diagonal.
        cross: C, [G, K, K] float64.

    Source: Lybrand and Saab 2021, arXiv:2010.11113, equation 2; Zhang, Zhou and Saab 2023, arXiv:2201.11113, equation 7.
    """
    diagonal = square.diagonal(dim1=1, dim2=2).unsqueeze(1)
    return _rule(weight @ cross.tril().mT / diagonal, square / diagonal)


def qronos(weight: Tensor, square: Tensor, cross: Tensor) -> Rule:
    """The rule of min E|w x - q x~|^2: the first column corrects for x~ in the place of x, then errors are diffused as in GPTQ.

    q_1 = Q((w C'_1 - sum_{s>1} w_s H[s, 1]) / H[1, 1]), the least of E|w x - q_1 x~_1 - sum_{s>1} w_s x~_s|^2;
    then w_{>1} becomes the least squares solution given q_1, and the columns go on as in GPTQ.

    That solution is w* = w C' H^-1, moved by (w*_1 - q_1) as GPTQ moves it: base = w* U and A = U, but for base_1.

    Args:
        weight: w, [G, O, K] float64.
        square: H, [G, K, K] float64, positive definite.
        cross: C, [G, K, K] float64.

    Source: Zhang et al. 2025, arXiv:2505.11695, equations 3 to 6 and proposition 3.2.
    """
    upper = _upper(square)
    unit = _unit_upper(upper)
    wanted = weight @ cross.mT
    half = torch.linalg.solve_triangular(upper, wanted.mT, upper=True)
    base = torch.linalg.solve_triangular(upper.mT, half, upper=False).mT @ unit
    others = (weight[..., 1:] * square[:, :1, 1:]).sum(-1)
    base[..., 0] = (wanted[..., 0] - others) / square[:, :1, 0]
    return _rule(base, unit)


def revive_(square: Tensor, *others: Tensor) -> None:
    """Put a 1 on the diagonal for inputs that are never other than 0, so that their weights are rounded to nearest.

    Args:
        square: H, [G, K, K] float64, overwritten.
        others: C, likewise.
    """
    dead = (square.diagonal(dim1=1, dim2=2) == 0).to(square)
    for matrix in (square, *others):
        matrix.diagonal(dim1=1, dim2=2).add_(dead)


def damp_(square: Tensor, *others: Tensor, damping: float) -> Tensor:
    """H + l I and C + l I, which adds l |w - q|^2 to the output's error; l is `damping` times each group's mean diagonal.

    Args:
        square: H, [G, K, K] float64, finite, with a positive diagonal; overwritten.
        others: C, likewise.
        damping: at least 0.

    Returns:
        The damping that was used, [G] float64: a group's is raised tenfold, from 1e-6 on, until none of its inputs follows from
        the others.

    Raises:
        ArithmeticError: no damping helps, which finite second moments do not come to.
    """
    diagonal = square.diagonal(dim1=1, dim2=2)
    own, mean = diagonal.clone(), diagonal.mean(1)
    used = torch.full_like(mean, damping)
    diagonal.add_((used * mean).unsqueeze(1))
    left = _singular(square).nonzero().squeeze(1)
    for _ in range(_RAISES):
        if not len(left):
            break
        used[left] = (10 * used[left]).clamp(min=_MIN_DAMPING)
        diagonal[left] = own[left] + (used * mean)[left].unsqueeze(1)
        left = left[_singular(square[left])]
    if len(left):
        raise ArithmeticError(f"second moments cannot be factored with any damping up to {float(used.max()):g}")
    for matrix in others:
        matrix.diagonal(dim1=1, dim2=2).add_((used * mean).unsqueeze(1))
    return used


def _singular(square: Tensor) -> Tensor:
    """Groups in which an input follows from others, [G] bool."""
    flipped = square.flip(1, 2)
    factor, info = torch.linalg.cholesky_ex(flipped)
    own = factor.diagonal(dim1=1, dim2=2).square()  # what of each input does not follow from those before it
    enough = own >= _MIN_OWN * flipped.diagonal(dim1=1, dim2=2)  # False for nan
    return (info != 0) | ~enough.all(1)


def settle(rule: Rule, round_column: RoundColumn) -> None:
    """Have the columns rounded in order, each at base_t - sum_{s<t} q_s A[s, t].

    Args:
        rule: of the layer.
        round_column: gets the value [G, O] of a column and its number, and gives what it was rounded to.
    """
    base, feedback = rule.base, rule.feedback
    rounded = torch.empty_like(base)
    for start in range(0, base.shape[-1], _BLOCK):
        stop = min(start + _BLOCK, base.shape[-1])
        target = base[..., start:stop] - rounded[..., :start] @ feedback[:, :start, start:stop]
        for column in range(start, stop):
            left = rounded[..., start:column] @ feedback[:, start:column, column : column + 1]
            rounded[..., column] = round_column(target[..., column - start] - left.squeeze(-1), column)


def in_order(matrix: Tensor, order: Tensor, *dims: int) -> Tensor:
    """A tensor of groups with some of its dimensions in the order that each group has.

    Args:
        matrix: [G, ...].
        order: [G, K].
        dims: of `matrix`, of length K.
    """
    for dim in dims:
        index = order.reshape([-1 if axis == dim else size if axis == 0 else 1 for axis, size in enumerate(matrix.shape)])
        matrix = matrix.gather(dim, index.expand_as(matrix))
    return matrix


def _rule(base: Tensor, feedback: Tensor) -> Rule:
    return Rule(base.float(), feedback.float())


def _upper(square: Tensor) -> Tensor:
    """R, upper triangular, with R R' = H."""
    return torch.linalg.cholesky(square.flip(1, 2)).flip(1, 2)


def _unit_upper(upper: Tensor) -> Tensor:
    """U of H = U D U', from R."""
    return upper / upper.diagonal(dim1=1, dim2=2).unsqueeze(1)
