"""How much memory a forward pass takes, from what one image takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexp.nn.graph import evaluating
from qexp.nn.operators import tensors_of

_BYTES = 4  # float32
_COPIES = 2  # of what a layer reads and gives: kernels lay both out in their own order, and a shortcut keeps one more alive


@torch.no_grad()
def forward_bytes(model: nn.Module, example: Tensor) -> int:
    """Bytes of activations that an evaluation of one image has at once, about: twice what the largest layer reads and gives.

    Args:
        model: any network.
        example: [1 or more, C, H, W] images.

    >>> forward_bytes(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 4, 4))
    1408
    """
    largest = 0

    def note(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        nonlocal largest
        largest = max(largest, sum(tensor.numel() for tensor in tensors_of([*args, output])))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        with evaluating(model):
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return _COPIES * _BYTES * largest
