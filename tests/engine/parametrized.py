"""A network as quantizers leave it: a `torch.fx` graph whose weights are made from parameters and buffers of their own."""

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize


class Scaled(nn.Module):
    """scale round(w / scale) with a gradient for both; buffers of several dtypes, one left out of the state dict."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("limits", torch.tensor([-8.0, 7.0]), persistent=False)

    def forward(self, w: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.ready |= True
        codes = (w / self.scale).clamp(self.limits[0], self.limits[1])
        return (codes + (codes.round() - codes).detach()) * self.scale


def scaled(network: nn.Module) -> fx.GraphModule:
    """`network` as a graph, the weights of its convolutions and linear layers parametrized."""
    graph = fx.symbolic_trace(network)
    for module in list(graph.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(module, "weight", Scaled(0.05))
    return graph
