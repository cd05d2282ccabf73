"""The graph of a network in eval mode, with what each node does to channels: what folding, equalization and absorption go by.

Found on the torch.fx graph. Rejected: neighbours in the module tree, which see neither functional calls nor a second reader of a
value.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qexp.base.errors import UserError
from qexp.nn.channels import NORMS, is_layer
from qexp.nn.tracing import fx_graph


class ChannelClip(nn.Module):
    """A ReLU with a cap of its own for each channel: min(max(x, 0), cap), what equalization makes of a ReLU6.

    Args:
        cap: [C, 1, ...], shaped to broadcast against the input: any tracer can enter the forward.
    """

    cap: Tensor

    def __init__(self, cap: Tensor) -> None:
        super().__init__()
        self.register_buffer("cap", cap)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> the same."""
        return torch.minimum(F.relu(x), self.cap)


RELU6_CAP = 6.0
RELU_LIKE = ("relu", "relu6", "clip", "prelu")
PASS_CHANNELS = ("identity", "max_pool", "avg_pool", "flatten", *RELU_LIKE)  # kinds that leave channels apart
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.PReLU: "prelu",
    ChannelClip: "clip",
    nn.Identity: "identity",
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), "identity"),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), "max_pool"),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), "avg_pool"),
    nn.Flatten: "flatten",
    **dict.fromkeys(NORMS, "norm"),
}
_FUNCTIONS: dict[object, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    F.relu6: "relu6",
    F.dropout: "identity",
    F.max_pool2d: "max_pool",
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d), "avg_pool"),
    torch.flatten: "flatten",
    torch.mean: "mean",
}
_METHODS = {"relu": "relu", "relu_": "relu", "flatten": "flatten", "view": "view", "reshape": "view", "mean": "mean"}


class Connectivity:
    """The graph of a network in eval mode, with what each node is.

    Args:
        model: not changed.

    Raises:
        UserError: a module in training mode, or a network that torch.fx cannot trace; names the module where it got stuck.
    """

    def __init__(self, model: nn.Module) -> None:
        training = next((name or type(model).__name__ for name, module in model.named_modules() if module.training), None)
        if training is not None:
            raise UserError(
                "model", f"{training} in training mode", allowed="a network in eval mode", remedy="Call model.eval()."
            )
        self.nodes: list[fx.Node] = list(fx_graph(model, leaves=(ChannelClip,))[0].nodes)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._calls = Counter(id(self.module(node)) for node in self.nodes if node.op == "call_module")
        attributes = {str(node.target) for node in self.nodes if node.op == "get_attr"}
        owners = Counter(
            id(value)
            for name, value in model.named_parameters(remove_duplicate=False)
            if name in attributes or self._is_executed(self.modules[name.rpartition(".")[0]])
        )
        reads = {name.rpartition(".")[0] for name in attributes}
        self._shared = {
            name
            for name, module in self.modules.items()
            if name in reads or any(owners[id(value)] > 1 for value in module.parameters(recurse=False))
        }

    def _is_executed(self, module: nn.Module) -> bool:
        """False for a module of the network's own that is entered: what it holds is read by name."""
        return id(module) in self._calls or type(module).__module__.startswith("torch.nn.")

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a `call_module` node calls."""
        return self.modules[str(node.target)]

    def kind(self, node: fx.Node) -> str:
        """`layer`, `norm`, an activation, a pooling, `flatten`, `identity`, or `other`."""
        if node.op == "call_module":
            module = self.module(node)
            kind = "layer" if is_layer(module) else _MODULES.get(type(module), "other")
        elif node.op == "call_function":
            kind = _FUNCTIONS.get(node.target, "other")
        else:
            kind = _METHODS.get(str(node.target), "other") if node.op == "call_method" else "other"
        if kind in ("flatten", "mean", "view"):
            return "flatten" if self._keeps_channels(node, kind) else "other"
        return kind

    def _keeps_channels(self, node: fx.Node, kind: str) -> bool:
        """True for what brings [N, C, ...] to [N, C ...], channel by channel."""
        if kind == "flatten" and node.op == "call_module":
            module = self.module(node)
            assert isinstance(module, nn.Flatten)
            return module.start_dim == 1 and module.end_dim == -1
        args = node.args[1:] + tuple(node.kwargs.values())
        if kind == "mean":
            dims = args[0] if args and isinstance(args[0], tuple | list) else args
            return len(args) == 1 and tuple(dims) in ((2, 3), (-2, -1), (-1, -2), (3, 2))
        return args == (1,) if kind == "flatten" else len(args) == 2 and bool(args[1] == -1)

    def single(self, node: fx.Node) -> bool:
        """True for a module that is called once and shares no parameter."""
        return self._calls[id(self.module(node))] == 1 and node.target not in self._shared

    @staticmethod
    def readers(node: fx.Node) -> list[fx.Node]:
        """The nodes that read a value, not only its shape."""

        def shape_only(user: fx.Node) -> bool:
            return (user.op == "call_method" and user.target in ("size", "dim")) or (
                user.op == "call_function" and user.target is getattr and user.args[1] in ("shape", "ndim")
            )

        return [user for user in node.users if not shape_only(user)]


def source_of(node: fx.Node) -> fx.Node:
    """The node whose value a node works on."""
    return node.all_input_nodes[0]
