"""Do two networks compute the same? Asked wherever one is made of another that should."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.nn.graph import evaluating
from qexp.nn.operators import tensors_of

TOLERANCE = 1e-2  # relative: float32 sums in another order stay far below, a weight that is not the one used far above


def outputs_on_noise(model: nn.Module, example: Tensor) -> list[Tensor]:
    """What a network gives in eval mode for images of noise, the same at every call; modes are as before afterwards.

    Args:
        model: any network of one image tensor.
        example: [N, C, H, W], whose shape, dtype and device the images have.
    """
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    devices = [example.device] if example.is_cuda else []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        return list(tensors_of(model(images)))


def check_same(expected: list[Tensor], actual: list[Tensor], what: str) -> None:
    """Raise unless both outputs are the same but for rounding; what is not finite to begin with cannot be compared.

    Args:
        expected: of the network as it was.
        actual: of the one that was made of it.
        what: was done to it, for the message.

    Raises:
        UserError: they differ.
    """
    for before, after in zip(expected, actual, strict=True):
        distance = float((after - before).norm() / before.norm().clamp(min=torch.finfo(before.dtype).tiny))
        if bool(before.isfinite().all()) and not distance <= TOLERANCE:
            remedy = (
                f"It gives other numbers (by {100 * distance:.3g} %): something beside its layers changes its weights or values."
            )
            raise UserError("model", what, allowed="a network that computes the same afterwards", remedy=remedy)
