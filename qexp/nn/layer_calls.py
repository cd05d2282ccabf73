"""Where a graph computes a convolution or a linear layer, as a module or by a function that reads a module's weight.

A network that pads by itself calls `F.conv2d(pad(x), self.weight, ...)` in a layer of its own, which tracing enters. What is said
and done of layers (integers, codes, costs) is asked of modules, so such calls are made modules again, named as their weight is.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from qexp.nn.graph import GraphNetwork, attach, node_names

_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_FUNCTIONS = (F.conv2d, torch.conv2d, F.linear)
_PRODUCTS = (torch.matmul, operator.matmul, torch.bmm, "matmul", "bmm")


@dataclass(frozen=True, eq=False)
class LayerCall:
    """A call of a layer in a graph.

    Args:
        node: that calls it.
        weight: state-dict name of its weight.
        bias: state-dict name of its bias; None where it has none.
    """

    node: fx.Node
    weight: str
    bias: str | None

    @property
    def source(self) -> fx.Node:
        """The node whose value the layer works on."""
        return self.node.all_input_nodes[0]


def layer_calls(network: GraphNetwork) -> Iterator[LayerCall]:
    """The two-dimensional convolutions and linear layers of a graph, in order, whose weights are parameters as they are.

    Args:
        network: of `qexp.nn.graph.trace`.
    """
    for node in network.graph.nodes:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield LayerCall(node, f"{node.target}.weight", None if module.bias is None else f"{node.target}.bias")
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            arguments = _arguments(node)
            weight, bias = arguments["weight"], arguments.get("bias")
            if _is_attribute(weight) and (bias is None or _is_attribute(bias)):
                yield LayerCall(node, str(weight.target), None if bias is None else str(bias.target))


def products(network: GraphNetwork) -> dict[fx.Node, str]:
    """The matrix products of two activations in a graph, in order, with their names (`blocks.0.attn.matmul`).

    Args:
        network: of `qexp.nn.graph.trace`.
    """
    names, reached, called = node_names(network.graph), set[fx.Node](), dict[fx.Node, str]()
    for node in network.graph.nodes:
        if node.op == "placeholder" or any(operand in reached for operand in node.all_input_nodes):
            reached.add(node)
        is_product = node.op in ("call_function", "call_method") and node.target in _PRODUCTS
        if is_product and len(node.args) == 2 and all(operand in reached for operand in node.args):
            called[node] = names[node]
    return called


@torch.no_grad()
def layers_as_modules(network: GraphNetwork) -> GraphNetwork:
    """The network with each of its layers as a module, named as its weight is; itself where they all are modules.

    A copy shares nothing with the network. State-dict names stay; a weight that is read twice gets further names.

    Args:
        network: of `qexp.nn.graph.trace`.
    """
    if all(call.node.op == "call_module" for call in layer_calls(network)):
        return network
    network = copy.deepcopy(network)
    taken = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    for call in list(layer_calls(network)):
        layer = None if call.node.op == "call_module" else _as_module(network, call)
        if layer is None:
            continue
        path = call.weight.removesuffix(".weight")
        names = {call.weight, call.bias} - {None}
        own = {f"{path}.{name}" for name, _ in layer.named_parameters()}
        if path in taken or path == call.weight or not names == own == _held(network, path):
            path = _free_path(network, call)
        else:
            for name, child in network.get_submodule(path).named_children():
                layer.add_module(name, child)
        taken.add(path)
        attach(network, path, layer)
        with network.graph.inserting_after(call.node):
            twin = network.graph.call_module(path, (_arguments(call.node)["input"],))
        call.node.replace_all_uses_with(twin)
        network.graph.erase_node(call.node)
    network.graph.eliminate_dead_code(lambda node: node.op != "get_attr")
    network.recompile()
    return network


def _free_path(network: GraphNetwork, call: LayerCall) -> str:
    """Where nothing lies: beside the weight, as `attention.in_proj` for `attention.in_proj_weight`, or at the node's name."""
    owner, _, leaf = call.weight.removesuffix("_weight").rpartition(".")
    if call.weight.endswith("_weight") and leaf and not hasattr(network.get_submodule(owner), leaf):
        return f"{owner}.{leaf}".lstrip(".")
    path = call.node.name
    while hasattr(network, path):
        path += "_"
    return path


def _held(network: GraphNetwork, path: str) -> set[str]:
    """The tensors that a module itself holds, by their names in the network."""
    owner = network.get_submodule(path)
    return {f"{path}.{name}" for name, value in (*owner._parameters.items(), *owner._buffers.items()) if value is not None}


def _as_module(network: GraphNetwork, call: LayerCall) -> nn.Conv2d | nn.Linear | None:
    """A module that computes what a function does, with the same parameters; None where it pads by other than numbers."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    weight, bias = parameters.get(call.weight), None if call.bias is None else parameters.get(call.bias)
    arguments = _arguments(call.node)
    if weight is None or (call.bias is not None and bias is None) or isinstance(arguments.get("padding"), str):
        return None
    layer: nn.Conv2d | nn.Linear
    if call.node.target is F.linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    else:
        stride, padding, dilation = (
            _pair(arguments.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        groups, kernel = int(arguments.get("groups", 1)), (weight.shape[2], weight.shape[3])
        layer = nn.Conv2d(
            weight.shape[1] * groups, weight.shape[0], kernel, stride, padding, dilation, groups, bias=False, device="meta"
        )
    layer.weight, layer.bias = weight, bias
    return layer.train(network.training)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a function by name."""
    return dict(zip(_CONV_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size of both dimensions."""
    height, width = (size, size) if isinstance(size, int) else size if len(size) == 2 else (*size, *size)
    return int(height), int(width)


def _is_attribute(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"
