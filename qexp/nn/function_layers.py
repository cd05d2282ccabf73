"""Convolutions and linear layers that functions compute, as the modules that compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._pytree import tree_iter

from qexp.base.modules import named_tensors
from qexp.nn.channels import Layer
from qexp.nn.graph import GraphNetwork
from qexp.nn.layer_calls import arguments_of, is_attribute, layer_class
from qexp.nn.operators import function_name


class FunctionLayers:
    """The layers of a graph that functions compute, with what they read of parameters and buffers.

    Args:
        network: its graph in eval mode.
    """

    def __init__(self, network: GraphNetwork) -> None:
        self.network = network
        self.tensors = named_tensors(network)
        self.interpreter = fx.Interpreter(network, garbage_collect_values=False)
        self.interpreter.extra_traceback = False
        self.varying: set[fx.Node] = set()
        for node in network.graph.nodes:
            if node.op == "placeholder" or self.varying & set(node.all_input_nodes):
                self.varying.add(node)

    def has_layer(self, node: fx.Node) -> bool:
        """False for a function that multiplies by what images decide, or that works on no images.

        Args:
            node: a convolution or linear layer.
        """
        if node.op == "call_module":
            return True
        arguments = arguments_of(node)
        if numbers_read(node) or arguments["input"] not in self.varying or self.varying & set(self._read(node)):
            return False
        return layer_class(node) is not nn.Linear or self._value(arguments["weight"]).dim() == 2

    def layer(self, node: fx.Node) -> Layer:
        """A module that computes what a function does; parameters that it reads as they are are shared.

        Args:
            node: for which `has_layer` is true.
        """
        kind, arguments = layer_class(node), arguments_of(node)
        weight, bias = (self._parameter(arguments.get(name)) for name in ("weight", "bias"))
        assert kind is not None and weight is not None
        layer: Any
        if kind is nn.Linear:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        else:
            rank, groups = weight.dim() - 2, int(arguments.get("groups", 1))
            defaults = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
            sizes = {key: _sizes(arguments.get(key, value), rank) for key, value in defaults.items()}
            outputs, inputs = weight.shape[0], weight.shape[1] * groups
            if issubclass(kind, _ConvTransposeNd):
                inputs, outputs = weight.shape[0], weight.shape[1] * groups
            else:
                del sizes["output_padding"]
            make: Any = kind
            layer = make(inputs, outputs, tuple(weight.shape[2:]), groups=groups, bias=False, device="meta", **sizes)
        layer.weight, layer.bias = weight, bias
        return layer

    def path(self, node: fx.Node) -> str | None:
        """The module that a layer's tensors belong to, where it is for nothing else; None where there is no such module.

        Args:
            node: for which `has_layer` is true.
        """
        arguments, read = arguments_of(node), self._attributes(node)
        bias = arguments.get("bias")
        owners = {name.rpartition(".")[0] for name in read}
        path = next(iter(owners)) if len(owners) == 1 else ""
        names = {f"{path}.weight"} | (set() if bias is None else {f"{path}.bias"})
        if not path or not names <= read or (bias is not None and not _is_bias_of(bias, path)):
            return None
        if {name for name in self.tensors if name.rpartition(".")[0] == path} != read:
            return None
        behind = self._behind(node)
        elsewhere = [
            other
            for other in self.network.graph.nodes
            if other.op == "get_attr" and other.target in read and not set(other.users) <= behind
        ]
        return None if elsewhere and not is_attribute(arguments["weight"]) else path

    def fallback(self, node: fx.Node) -> str:
        """A name for a layer whose tensors are no module's.

        Args:
            node: for which `has_layer` is true.
        """
        weight = arguments_of(node)["weight"]
        owner, _, leaf = str(weight.target).removesuffix("_weight").rpartition(".")
        if is_attribute(weight) and str(weight.target).endswith("_weight") and leaf:  # attention.in_proj of in_proj_weight
            if not hasattr(self.network.get_submodule(owner), leaf):
                return f"{owner}.{leaf}".lstrip(".")
        alone = is_attribute(weight) and not str(weight.target).endswith("weight") and len(weight.users) == 1
        return f"{weight.target}_{function_name(node)}" if alone else node.name

    def _behind(self, node: fx.Node) -> set[fx.Node]:
        """A layer's call, and what is computed for it alone."""
        behind, waiting = {node}, [value for value in self._read(node) if isinstance(value, fx.Node)]
        while waiting:
            source = waiting.pop()
            if set(source.users) <= behind:
                behind.add(source)
                waiting += source.all_input_nodes
        return behind

    def _attributes(self, node: fx.Node) -> set[str]:
        """Names of the tensors that a layer's weight and bias are made of."""
        names, waiting = set(), self._read(node)
        while waiting:
            source = waiting.pop()
            if source.op == "get_attr":
                names.add(str(source.target))
            waiting += source.all_input_nodes
        return names

    @staticmethod
    def _read(node: fx.Node) -> list[fx.Node]:
        """What a function's weight and bias are."""
        arguments = arguments_of(node)
        return [value for name in ("weight", "bias") if isinstance(value := arguments.get(name), fx.Node)]

    def _parameter(self, node: fx.Node | None) -> nn.Parameter | None:
        """A parameter itself, else a new one that holds what a node gives."""
        if node is None:
            return None
        value = self._value(node)
        return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone(), requires_grad=False)

    def _value(self, node: fx.Node) -> Any:
        for source in node.all_input_nodes:
            if source not in self.interpreter.env:
                self._value(source)
        self.interpreter.env[node] = self.interpreter.run_node(node)
        return self.interpreter.env[node]


def numbers_read(node: fx.Node) -> list[fx.Node]:
    """What a layer's function reads beside its input, weight and bias: strides and groups that are computed.

    Args:
        node: that calls it.
    """
    others = [value for name, value in arguments_of(node).items() if name not in ("input", "weight", "bias")]
    return [leaf for leaf in tree_iter(others) if isinstance(leaf, fx.Node)]


def _sizes(size: int | str | Sequence[int], rank: int) -> str | tuple[int, ...]:
    """A size of each dimension; a padding may be a word."""
    if isinstance(size, str):
        return size
    sizes = (size,) * rank if isinstance(size, int) else tuple(size) * (rank // len(size))
    return tuple(int(value) for value in sizes)


def _is_bias_of(node: fx.Node, path: str) -> bool:
    return node.op == "get_attr" and node.target == f"{path}.bias"
