"""Networks whose layers are torch's own modules, made of networks that write them in other ways.

A class derived from `nn.Conv2d` pads by itself before `F.conv2d(x, self.weight, ...)`, or standardizes its weight first; a
function reads a parameter or a buffer; `padding_mode="reflect"`. What is said and done of layers (folding, corrections, integers,
codes, costs) is asked of modules, so such calls are made modules again. What a layer multiplies by is then its weight: one that
the forward computes of other tensors is computed once, and padding stands before the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from qexp.base.errors import UserError
from qexp.base.modules import named_tensors
from qexp.nn.channels import is_layer
from qexp.nn.compare import check_same, outputs_on_noise
from qexp.nn.function_layers import FunctionLayers, numbers_read
from qexp.nn.function_norms import RANK, is_function_norm, norms_as_modules_
from qexp.nn.graph import GraphNetwork, Traced, attach, trace
from qexp.nn.layer_calls import arguments_of, is_attribute, layer_class
from qexp.nn.tracing import fx_graph

LAYERS_VERSION = 1  # part of the keys of networks whose layers became modules; raise it when they come to compute something else
_PADS = {
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


@dataclass(frozen=True, eq=False)
class PlainLayers:
    """A network whose layers and batch norms are torch's own modules, as far as it can be traced.

    Args:
        network: the one given, where they were already or where it cannot be traced.
        changed: it is another: a graph of eval mode.
        computed: names of the weights that its forward computed of other tensors at each call.
        dropped: names of tensors that only these read, in modules that stay.
    """

    network: nn.Module
    changed: bool = False
    computed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def version(self) -> int | None:
        """Of how its layers became modules; None where they were."""
        return LAYERS_VERSION + bool(self.dropped) if self.changed else None  # which stayed, and counted, in the first version


def with_plain_layers(model: nn.Module, example: Tensor) -> PlainLayers:
    """A network that computes the same in eval mode, by layers that are modules whose weights are what they multiply by.

    Names of the state dict stay, unless only a weight that was computed read them; a layer that had no name of its own gets one
    (`kernel_conv2d.weight`), beside that of its parameter, with which it shares its memory.

    Args:
        model: not changed, nor shared with.
        example: [1 or more, C, H, W] images as the network takes them.
    """
    try:
        twin = copy.deepcopy(model).eval()
        traced = _traced(twin, example)
        if traced is None:
            return PlainLayers(model)
        for node, value in traced.values.items():
            node.meta[RANK] = len(value.shape or ())
        images = torch.cat([example[:1]] * 2)
        expected = outputs_on_noise(twin, images)  # whose modules change below
        network = traced.build()
        _settle_sizes(network, example)
        norms_as_modules_(network)
        names = tuple(_computed(network))
        plain = layers_as_modules(network)
        dropped = tuple(_drop_unread_(plain, _attributes(network) - _attributes(plain)))
        check_same(expected, outputs_on_noise(plain, images), "layers as modules")
    except Exception:  # whatever a graph raises that does not fit; whoever needs it says why there is none
        return PlainLayers(model)
    return PlainLayers(plain.train(model.training), changed=True, computed=names, dropped=dropped)


def _traced(network: nn.Module, example: Tensor) -> Traced | None:
    """The graph of a network that has other layers than modules, or that can be followed at one image size only; else None.

    Attention stays one operator: the network is to give its own numbers bit by bit, as stored logits are compared.
    """
    try:
        graph, _ = fx_graph(network)
    except UserError:
        return trace(network, torch.cat([example[:1]] * 3), sized=True, enter=False)
    if not any(_is_odd(network, node) or is_function_norm(node) for node in graph.nodes):
        return None
    return trace(network, example, enter=False)


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
    constants = FunctionLayers(network)
    if not any(_is_odd(network, node) and constants.has_layer(node) for node in network.graph.nodes):
        return network
    network = copy.deepcopy(network)
    constants, taken = FunctionLayers(network), {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
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
    needed = FunctionLayers(network).varying
    for node in reversed(list(network.graph.nodes)):
        if node not in needed and node.op != "output" and not node.users:
            network.graph.erase_node(node)
    network.recompile()
    return network


def _attributes(network: GraphNetwork) -> set[str]:
    """Names of the tensors that a graph reads beside its modules."""
    return {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}


def _drop_unread_(network: GraphNetwork, names: set[str]) -> Iterator[str]:
    """Take tensors out of a network that no operator reads any more, nor a module by whatever name; gives their names."""
    owned = named_tensors(network)
    called = [network.get_submodule(str(node.target)) for node in network.graph.nodes if node.op == "call_module"]
    read = {id(owned[name]) for name in _attributes(network) & owned.keys()}
    read |= {id(tensor) for module in called for tensor in (*module.parameters(), *module.buffers())}
    for name in sorted(names & network.state_dict().keys()):
        if id(owned[name]) not in read:
            path, _, leaf = name.rpartition(".")
            delattr(network.get_submodule(path), leaf)
            yield name


def _settle_sizes(network: GraphNetwork, example: Tensor) -> None:
    """Numbers that a layer's function takes from shapes (`groups=x.shape[1]`) become numbers, where the batch has no say."""
    taken: dict[fx.Node, list[Any]] = {}
    odd = [node for node in network.graph.nodes if layer_class(node) is not None and numbers_read(node)]
    for count in (1, 2) if odd else ():
        recorder = fx.Interpreter(network, garbage_collect_values=False)
        recorder.extra_traceback = False
        with torch.no_grad():
            recorder.run(torch.cat([example[:1]] * count))
        for source in (source for node in odd for source in numbers_read(node)):
            taken.setdefault(source, []).append(recorder.env[source])
    known = {node: first for node, (first, *others) in taken.items() if isinstance(first, int) and first in others}
    for node in odd:
        arguments = {key: _replaced(value, known) for key, value in arguments_of(node).items()}
        node.args, node.kwargs = (arguments.pop("input"), arguments.pop("weight")), arguments
    network.recompile()


def _replaced(argument: Any, known: Mapping[fx.Node, int]) -> Any:
    return fx.map_arg(argument, lambda node: known.get(node, node))


def _is_odd(network: nn.Module, node: fx.Node) -> bool:
    """True for a layer that is no module of torch's, or that pads by other than zeros."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, _ConvNd) and is_layer(module) and module.padding_mode != "zeros"
    return layer_class(node) is not None


def _computed(network: GraphNetwork) -> Iterator[str]:
    """The names of weights that the network computes."""
    constants = FunctionLayers(network)
    for node in network.graph.nodes:
        if node.op == "call_function" and _is_odd(network, node) and constants.has_layer(node):
            weight = arguments_of(node)["weight"]
            if not is_attribute(weight):
                path = constants.path(node) or constants.fallback(node)
                yield f"{path}.weight"


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
