"""An exponential moving average of a network while it trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that each `update_parameters` moves: a <- d_t a + (1 - d_t) w, after t updates.

    d_t = min(d, (1 + t) / (10 + t)), so that a short training is not an average of its first weights. Parameters and float
    buffers (batch norm's statistics) are averaged; buffers of integers are those of the network.

    Args:
        model: on its device, not wrapped.
        decay: d, 0 to 1.

    Source: Polyak and Juditsky 1992; d_t as in TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    return AveragedModel(model, multi_avg_fn=_moves(decay), use_buffers=True)


def _moves(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def move(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            count = int(updates)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))
        else:
            torch._foreach_copy_(averaged, current)

    return move
