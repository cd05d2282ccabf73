"""Networks whose layers are torch's own modules, made of networks that write them in other ways.

A class derived from `nn.Conv2d` pads by itself before `F.conv2d(x, self.weight, ...)`, or standardizes its weight first; a function
reads a parameter or a buffer; `padding_mode="reflect"`. What is said and done of layers (folding, corrections, integers, codes,
costs) is asked of modules, so such calls are made modules again. What a layer multiplies by is then its weight: one that the
forward computes of other tensors is computed once, and padding stands before the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from qexp.base.errors import UserError
from qexp.nn.channels import Layer, is_layer
from qexp.nn.graph import GraphNetwork, attach, trace
from qexp.nn.layer_calls import arguments_of, is_attribute, layer_class
from qexp.nn.operators import function_name
from qexp.nn.tracing import fx_graph

LAYERS_VERSION = 1  # part of the keys of networks whose layers became modules; raise it when they come to compute something else
_PADS = {
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


@dataclass(frozen=True, eq=False)
class PlainLayers:
    """A network whose layers are torch's own modules, as far as it can be traced.

    Args:
        network: the one given, where they were already or where it cannot be traced.
        changed: it is another: a graph of eval mode.
        computed: names of the weights that its forward computed of other tensors at each call.
    """

    network: nn.Module
    changed: bool = False
    computed: tuple[str, ...] = ()


def with_plain_layers(model: nn.Module, example: Tensor) -> PlainLayers:
    """A network that computes the same in eval mode, by layers that are modules whose weights are what they multiply by.

    Names of the state dict stay, unless only a weight that was computed read them; a layer that had no name of its own gets one
    (`kernel_conv2d.weight`), beside that of its parameter, with which it shares its memory.

    Args:
        model: not changed, nor shared with.
        example: [1 or more, C, H, W] images as the network takes them.
    """
    twin = copy.deepcopy(model).eval()
    try:
        graph, _ = fx_graph(twin)
        if not any(_is_odd(twin, node) for node in graph.nodes):
            return PlainLayers(model)
        network = trace(twin, example).build()
        names = tuple(_computed(network))
        plain = layers_as_modules(network)
    except UserError:  # whoever needs the graph says why there is none
        return PlainLayers(model)
    return PlainLayers(plain, plain is not network, names)


def computed_weights(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the weights that a network's forward computes of other tensors; none where it cannot be traced.

    Args:
        model: not changed.
        example: [1 or more, C, H, W] images as the network takes them.
    """
    return with_plain_layers(model, example).computed


@torch.no_grad()
def layers_as_modules(network: GraphNetwork) -> GraphNetwork:
    """The network with each of its layers as a module, named as its weight is; itself where they all are modules.

    A copy shares nothing with the network. State-dict names stay; a weight that is read twice gets further names.

    Args:
        network: of `qexp.nn.graph.trace`, in eval mode.
    """
    constants = _Constants(network)
    if not any(_is_odd(network, node) and constants.has_layer(node) for node in network.graph.nodes):
        return network
    network = copy.deepcopy(network)
    constants, taken = _Constants(network), {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    for node in [node for node in network.graph.nodes if _is_odd(network, node) and constants.has_layer(node)]:
        if node.op == "call_module":
            _pad_before(network, node)
            continue
        layer, path = constants.layer(node), constants.path(node)
        if path is None or path in taken:
            path = _free(network, constants.fallback(node))
        else:
            for name, child in network.get_submodule(path).named_children():
                layer.add_module(name, child)
        taken.add(path)
        attach(network, path, layer.train(network.training))
        with network.graph.inserting_after(node):
            twin = network.graph.call_module(path, (arguments_of(node)["input"],))
        twin.meta = dict(node.meta)
        node.replace_all_uses_with(twin)
        network.graph.erase_node(node)
    needed = _Constants(network).varying
    for node in reversed(list(network.graph.nodes)):
        if node not in needed and node.op != "output" and not node.users:
            network.graph.erase_node(node)
    network.recompile()
    return network


def _is_odd(network: nn.Module, node: fx.Node) -> bool:
    """True for a layer that is no module of torch's, or that pads by other than zeros."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, _ConvNd) and is_layer(module) and module.padding_mode != "zeros"
    return layer_class(node) is not None


def _computed(network: GraphNetwork) -> Iterator[str]:
    """The names of weights that the network computes."""
    constants = _Constants(network)
    for node in network.graph.nodes:
        if node.op == "call_function" and _is_odd(network, node) and constants.has_layer(node):
            weight = arguments_of(node)["weight"]
            if not is_attribute(weight):
                path = constants.path(node) or constants.fallback(node)
                yield f"{path}.weight"


class _Constants:
    """What a graph computes of parameters and buffers alone, and the layers that read it."""

    def __init__(self, network: GraphNetwork) -> None:
        self.network = network
        self.tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(
            network.named_buffers(remove_duplicate=False)
        )
        self.interpreter = fx.Interpreter(network, garbage_collect_values=False)
        self.interpreter.extra_traceback = False
        self.varying: set[fx.Node] = set()
        for node in network.graph.nodes:
            if node.op == "placeholder" or self.varying & set(node.all_input_nodes):
                self.varying.add(node)

    def has_layer(self, node: fx.Node) -> bool:
        """False for a function that multiplies by what images decide, or that works on no images."""
        if node.op == "call_module":
            return True
        arguments = arguments_of(node)
        if arguments["input"] not in self.varying or self.varying & set(self._read(node)):
            return False
        return layer_class(node) is not nn.Linear or self._value(arguments["weight"]).dim() == 2

    def layer(self, node: fx.Node) -> Layer:
        """A module that computes what a function does; parameters that it reads as they are are shared."""
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
            layer = kind(inputs, outputs, tuple(weight.shape[2:]), groups=groups, bias=False, device="meta", **sizes)
        layer.weight, layer.bias = weight, bias
        return layer

    def path(self, node: fx.Node) -> str | None:
        """The module that a layer's tensors belong to, where it is for nothing else; None where there is no such module."""
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
        """A name for a layer whose tensors are no module's."""
        weight = arguments_of(node)["weight"]
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


def _pad_before(network: GraphNetwork, node: fx.Node) -> None:
    """Take the padding of a convolution that pads by other than zeros out of it, to stand before it."""
    path = str(node.target)
    conv: Any = network.get_submodule(path)
    if conv.padding_mode == "zeros":  # an earlier call of the same module
        return
    module = _PADS[conv.padding_mode][len(conv.kernel_size) - 1](conv._reversed_padding_repeated_twice)
    padding = _free(network, f"{path}_{type(module).__name__.lower()}")
    attach(network, padding, module.train(network.training))
    plain = copy.copy(conv)  # the same parameters
    plain.__dict__.update(padding=(0,) * len(conv.kernel_size), padding_mode="zeros")
    for other in [other for other in network.graph.nodes if other.op == "call_module" and other.target == path]:
        with network.graph.inserting_before(other):
            call = network.graph.call_module(padding, (other.args[0],))
        call.meta = dict(other.meta)
        other.args = (call, *other.args[1:])
    attach(network, path, plain)


def _free(network: nn.Module, path: str) -> str:
    """A path that nothing has yet."""
    while _has(network, path):
        path += "_"
    return path


def _has(network: nn.Module, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return hasattr(network.get_submodule(parent), name)


def _sizes(size: int | str | Sequence[int], rank: int) -> str | tuple[int, ...]:
    """A size of each dimension; a padding may be a word."""
    if isinstance(size, str):
        return size
    sizes = (size,) * rank if isinstance(size, int) else tuple(size) * (rank // len(size))
    return tuple(int(value) for value in sizes)


def _is_bias_of(node: fx.Node, path: str) -> bool:
    return node.op == "get_attr" and node.target == f"{path}.bias"
