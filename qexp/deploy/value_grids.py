"""On which activation point's grid a value lies: its own, or that of the values which it only moves."""

from __future__ import annotations

from torch import fx

from qexp.deploy.graph_nodes import called_module, quantizer_at
from qexp.deploy.onnx.operators import KEEPS_VALUES, handler_of
from qexp.deploy.onnx.shapes import dropout, identity
from qexp.nn.fake_quantize import FakeQuantize
from qexp.nn.graph import GraphNetwork


def grid_nodes(network: GraphNetwork) -> dict[fx.Node, fx.Node]:
    """Node -> the node that quantizes the values which it holds; not those whose values lie on several grids, or on none.

    Values that one point quantizes at several nodes share its grid, unless each batch has its own.

    Args:
        network: with fake quantization.
    """
    sources: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        module = called_module(network, node)
        if isinstance(module, FakeQuantize):
            sources[node] = node
        elif node.op.startswith("call") and handler_of(node, module) in (*KEEPS_VALUES, identity, dropout):
            operands = node.args[0] if node.args and isinstance(node.args[0], list | tuple) else node.args[:1]  # not sizes
            given = [sources.get(operand) if isinstance(operand, fx.Node) else None for operand in operands]
            known = [one for one in given if one is not None]
            quantizers = {quantizer_at(network, one) for one in known}
            if known and len(known) == len(given) and len(quantizers) == 1:
                (quantizer,) = quantizers
                assert quantizer is not None
                if not quantizer.spec.dynamic or len(set(known)) == 1:
                    sources[node] = known[0]
    return sources


def value_quantizers(network: GraphNetwork) -> dict[fx.Node, FakeQuantize]:
    """Node -> the quantizer on whose grid its value lies, of `grid_nodes`.

    Args:
        network: with fake quantization.
    """
    quantizers = {node: quantizer_at(network, source) for node, source in grid_nodes(network).items()}
    return {node: quantizer for node, quantizer in quantizers.items() if quantizer is not None}
