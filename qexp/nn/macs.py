"""Multiply-accumulates of each layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qexp.nn.graph import evaluating


@torch.no_grad()
def macs_per_layer(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-accumulates of one image, by module: of convolutions, linear layers and matrix products, as torch counts them.

    Args:
        model: any network.
        example: [N, C, H, W] images.

    >>> macs_per_layer(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2)), torch.zeros(1, 3, 4, 4))
    {'0': 864, '2': 64}
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that nobody counts, like the CPU's attention kernel
    try:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    root = type(model).__name__
    totals = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name != "Global"}
    own = dict(totals)  # without what submodules multiply
    for name, total in totals.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in totals:  # a graph calls its modules itself, not by way of their parents
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= total
    return {name.removeprefix(root).removeprefix(".") or root: flops // 2 for name, flops in own.items() if flops > 0}
