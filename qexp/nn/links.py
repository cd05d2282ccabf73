"""Which layer feeds which, through operations that leave channels apart: what folding, equalization and absorption go by.

Found on the torch.fx graph of the network in eval mode. Rejected: neighbours in the module tree, which see neither functional
calls nor a second reader of a value.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qexp.base.errors import UserError
from qexp.nn.channels import NORMS, is_layer, num_inputs, num_outputs
from qexp.nn.graph import follow


class ChannelClip(nn.Module):
    """A ReLU with a cap of its own for each channel: min(max(x, 0), cap), what equalization makes of a ReLU6.

    Args:
        cap: [C, 1, ...], shaped to broadcast against the input: any tracer can enter the forward.
    """

    def __init__(self, cap: Tensor) -> None:
        super().__init__()
        self.register_buffer("cap", cap)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> the same."""
        return torch.minimum(F.relu(x), self.cap)


RELU6_CAP = 6.0
RELU_LIKE = ("relu", "relu6", "clip", "prelu")
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
_FUNCTIONS = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    F.relu6: "relu6",
    F.dropout: "identity",
    F.max_pool2d: "max_pool",
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d), "avg_pool"),
    torch.flatten: "flatten",
    torch.mean: "mean",
}
_METHODS = {"relu": "relu", "relu_": "relu", "flatten": "flatten", "view": "view", "reshape": "view", "mean": "mean"}
_PASSABLE = ("identity", "max_pool", "avg_pool", "flatten", *RELU_LIKE)


@dataclass(frozen=True)
class Link:
    """A layer's input, followed back to the layer or batch norm that made it.

    Args:
        source: module name of that layer or batch norm.
        target: of the layer that reads it.
        activation: on the way, `none`, `relu`, `relu6`, `clip` (a `ChannelClip`) or `prelu`; its module's name, None where it is
            a function.
        features: of the target's inputs for each channel of the source: 1, or more behind a flatten.
        exclusive: nothing else reads the values on the way, and neither module is called twice or shares its parameters.
        max_pooled: there is a max pooling on the way.
    """

    source: str
    target: str
    activation: str
    activation_module: str | None
    features: int
    exclusive: bool
    max_pooled: bool


class Wiring:
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
        self.nodes = list(follow(model, leaves=(ChannelClip,))[0].nodes)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._calls = Counter(id(self.modules[node.target]) for node in self.nodes if node.op == "call_module")
        owners = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
        reads = {node.target.rpartition(".")[0] for node in self.nodes if node.op == "get_attr"}
        self._shared = {
            name
            for name, module in self.modules.items()
            if name in reads or any(owners[id(value)] > 1 for value in module.parameters(recurse=False))
        }

    def kind(self, node: fx.Node) -> str:
        """`layer`, `norm`, an activation, a pooling, `flatten`, `identity`, or `other`."""
        if node.op == "call_module":
            module = self.modules[node.target]
            found = "layer" if is_layer(module) else _MODULES.get(type(module), "other")
        elif node.op == "call_function":
            found = _FUNCTIONS.get(node.target, "other")
        else:
            found = _METHODS.get(node.target, "other") if node.op == "call_method" else "other"
        if found in ("flatten", "mean", "view"):
            return "flatten" if self._keeps_channels(node, found) else "other"
        return found

    def _keeps_channels(self, node: fx.Node, kind: str) -> bool:
        """True for what brings [N, C, ...] to [N, C ...], channel by channel."""
        if kind == "flatten" and node.op == "call_module":
            module = self.modules[node.target]
            return module.start_dim == 1 and module.end_dim == -1
        args = node.args[1:] + tuple(node.kwargs.values())
        if kind == "mean":
            dims = args[0] if args and isinstance(args[0], tuple | list) else args
            return len(args) == 1 and tuple(dims) in ((2, 3), (-2, -1), (-1, -2), (3, 2))
        return args == (1,) if kind == "flatten" else len(args) == 2 and args[1] == -1

    def single(self, node: fx.Node) -> bool:
        """True for a module that is called once and shares no parameter."""
        return self._calls[id(self.modules[node.target])] == 1 and node.target not in self._shared

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


def find_links(model: nn.Module) -> tuple[Link, ...]:
    """Every layer whose input can be followed back to one other layer or batch norm, in order of execution.

    Raises:
        UserError: as for `Wiring`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    >>> [(link.source, link.target, link.activation, link.features) for link in find_links(net)]
    [('0', '3', 'relu', 4)]
    """
    wiring = Wiring(model)
    found = [_link(wiring, node) for node in wiring.nodes if wiring.kind(node) == "layer"]
    return tuple(link for link in found if link is not None)


def _link(wiring: Wiring, target: fx.Node) -> Link | None:
    """The way back from a layer, None where it leads to no layer or norm or mixes channels."""
    way, node = [], source_of(target)
    while wiring.kind(node) in _PASSABLE:
        way.append(node)
        node = source_of(node)
    if wiring.kind(node) not in ("layer", "norm"):
        return None
    kinds = [wiring.kind(step) for step in way]
    flat = "flatten" in kinds
    acts = [step for step in way if wiring.kind(step) in RELU_LIKE]
    source, reader = wiring.modules[node.target], wiring.modules[target.target]
    spatial = type(source) is not nn.Linear and type(source) is not nn.BatchNorm1d
    channels = source.num_features if wiring.kind(node) == "norm" else num_outputs(source)
    mixes = isinstance(reader, nn.Linear) and spatial != flat
    if mixes or len(acts) > 1 or num_inputs(reader) % channels or (not flat and num_inputs(reader) != channels):
        return None
    activation = wiring.kind(acts[0]) if acts else "none"
    if flat and activation not in ("none", "relu"):  # a cap or slope for each channel, but no channels
        return None
    alone = all(len(wiring.readers(step)) == 1 for step in (node, *way)) and wiring.single(node) and wiring.single(target)
    module = acts[0].target if acts and acts[0].op == "call_module" else None
    if module is not None and activation != "relu" and not wiring.single(acts[0]):
        alone = False
    return Link(node.target, target.target, activation, module, num_inputs(reader) // channels, alone, "max_pool" in kinds)


def activations_after(model: nn.Module) -> dict[str, str]:
    """Layer -> the activation that alone reads its output (`relu`, `relu6`, `clip`, `prelu`); layers without one are left out."""
    wiring, found = Wiring(model), {}
    for node in wiring.nodes:
        if wiring.kind(node) == "layer":
            name, readers = node.target, wiring.readers(node)
            while len(readers) == 1 and wiring.kind(readers[0]) == "identity":
                readers = wiring.readers(readers[0])
            if len(readers) == 1 and wiring.kind(readers[0]) in RELU_LIKE:
                found[name] = wiring.kind(readers[0])
    return found
