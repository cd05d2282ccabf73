"""Where a graph computes a convolution or a linear layer, as a module or by a function."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from qexp.nn.channels import CONVS, Layer
from qexp.nn.graph import GraphNetwork, node_names

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_PRODUCTS = (torch.matmul, operator.matmul, torch.bmm, "matmul", "bmm")
_NAMES = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_FUNCTIONS: dict[object, type[Layer]] = {
    **{getattr(torch, name): kind for name, kind in zip(_NAMES, CONVS, strict=True)},
    **{getattr(F, name): kind for name, kind in zip(_NAMES, CONVS, strict=True)},
    F.linear: nn.Linear,
}


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
    """The convolutions and linear layers of a graph, in order, whose weights are parameters or buffers as they are.

    Args:
        network: of `qexp.nn.graph.trace`.
    """
    for node in network.graph.nodes:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if isinstance(module, _ConvNd | nn.Linear):
                yield LayerCall(node, f"{node.target}.weight", None if module.bias is None else f"{node.target}.bias")
        elif node.op == "call_function" and layer_class(node) is not None:
            arguments = arguments_of(node)
            weight, bias = arguments["weight"], arguments.get("bias")
            if is_attribute(weight) and (bias is None or is_attribute(bias)):
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


def layer_class(node: fx.Node) -> type[Layer] | None:
    """The class of torch's that computes what a function does; None where it is no convolution nor linear layer.

    Args:
        node: of a graph.
    """
    try:
        return _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    except TypeError:  # a callable without a hash
        return None


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of a layer's function by name.

    Args:
        node: for which there is a `layer_class`.
    """
    kind = layer_class(node)
    names = _TRANSPOSED if kind is not None and issubclass(kind, _ConvTransposeNd) else _CONV
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def is_attribute(value: object) -> TypeGuard[fx.Node]:
    """True for a node that reads a parameter or a buffer by its name."""
    return isinstance(value, fx.Node) and value.op == "get_attr"
