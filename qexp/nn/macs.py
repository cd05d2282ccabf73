"""Multiply-accumulates of each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qexp.nn.graph import GraphNetwork, evaluating
from qexp.nn.layer_calls import products


@torch.no_grad()
def macs_per_layer(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-accumulates of one image, by module: of convolutions, linear layers and matrix products, as torch counts them.

    Of a graph also by product: of two activations each, by the names of `qexp.nn.layer_calls.products`.

    Args:
        model: any network.
        example: [N, C, H, W] images.

    >>> macs_per_layer(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2)), torch.zeros(1, 3, 4, 4))
    {'0': 864, '2': 64}
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that nobody counts, like the CPU's attention kernel
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for (
            parameter
        ) in learned:  # torch's counter takes one that a module is given (CaiT's class token) for a result with a history
            parameter.requires_grad_(False)
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in learned:
            parameter.requires_grad_(True)
    root = type(model).__name__
    totals = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name != "Global"}
    own = dict(totals)  # without what submodules multiply
    for name, total in totals.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in totals:  # a graph calls its modules itself, not by way of their parents
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= total
    by_product = _Products(model).macs(example[:1]) if isinstance(model, GraphNetwork) else {}
    own[root] = own.get(root, 0) - 2 * sum(by_product.values())
    macs = {name.removeprefix(root).removeprefix(".") or root: flops // 2 for name, flops in own.items() if flops > 0}
    return macs | by_product


class _Products(fx.Interpreter):
    """Runs a graph and counts the products of two activations in it, which are functions and in no module."""

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__(network)
        self.names, self.counts = products(network), dict[str, int]()

    def macs(self, example: Tensor) -> dict[str, int]:
        """Name of a product -> multiply-accumulates."""
        if self.names:
            with evaluating(self.module):
                self.run(example)
        return self.counts

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.names:
            self.counts[self.names[n]] = result.numel() * self.env[n.all_input_nodes[0]].shape[-1]
        return result
