"""What a node of a quantized network's graph calls and reads, with types."""

from __future__ import annotations

from torch import fx, nn

from qexp.nn.fake_quantize import FakeQuantize
from qexp.nn.graph import GraphNetwork


def called_module(network: GraphNetwork, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None where it calls a function or a method, or nothing."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def quantizer_at(network: GraphNetwork, node: fx.Node) -> FakeQuantize | None:
    """The fake quantization that a node calls; None where it calls anything else."""
    module = called_module(network, node)
    return module if isinstance(module, FakeQuantize) else None


def first_input(node: fx.Node) -> fx.Node:
    """The node whose value is the first argument of another."""
    argument = node.args[0]
    assert isinstance(argument, fx.Node), f"{node} reads no value first"
    return argument


def output_of(network: GraphNetwork) -> fx.Node | None:
    """The node whose value the network returns; None where it returns several values."""
    output = next(node for node in network.graph.nodes if node.op == "output").args[0]
    return output if isinstance(output, fx.Node) else None


def place_of(node: fx.Node) -> str:
    """Where a person finds a function in the source: the path of the module around it, and its name; empty of a module.

    Args:
        node: of a graph that `qexp.nn.graph.trace` found.
    """
    scope = next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0]
    return "" if node.op == "call_module" else f"{scope}.{node.name}".lstrip(".")
