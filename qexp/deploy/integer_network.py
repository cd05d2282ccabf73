"""A whole network with its layers in integers: what hardware computes, without any runtime.

The network's graph runs as it is, but for modules of convolutions and linear layers that read codes, and for matrix products of
codes (attention): these compute `integer_layer`, with biases at 32 bits, or `integer_product`, and give the values of the codes
that the activation point behind them takes. Adds, elementwise products and averages are computed on the values of codes and
quantized by division, as ONNX defines its operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from qexp.base.errors import UserError
from qexp.base.types import QParams
from qexp.deploy.activation_codes import code_nodes, codes_from, qparams_of
from qexp.deploy.graph_nodes import called_module, first_input, quantizer_at
from qexp.deploy.integer_layer import Clamp, along_channels, channel_axis, integer_layer, integer_product, shared_groups
from qexp.deploy.onnx.operators import clamps_of
from qexp.deploy.value_grids import grid_nodes
from qexp.deploy.weight_codes import WeightCodes, accumulator_scale, bias_codes
from qexp.nn.channels import Layer
from qexp.nn.fake_quantize import FakeQuantize
from qexp.nn.graph import GraphNetwork, evaluating
from qexp.nn.layer_calls import products
from qexp.quant.affine import dequantize_affine, quantize_affine


@torch.no_grad()
def integer_codes(
    network: GraphNetwork,
    weights: Mapping[str, WeightCodes],
    images: Tensor,
    *,
    requantization: str = "float32",
    given: Mapping[str, Tensor] | None = None,
    ran: set[str] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The codes of every activation point, int32, as integer hardware has them, and the logits.

    Args:
        network: as for `qexp.deploy.onnx.qdq.export_qdq`; layers whose weights or inputs have no codes stay float, functions too.
        weights: state-dict name -> codes.
        images: [N, C, H, W] float32.
        requantization: of `qexp.deploy.integer_layer.requantize`.
        given: activation point -> codes that a runtime has there: what follows a point is computed from these, and the result is
            what each point would have been, had everything before it been as given.
        ran: gets the names of the layers that were computed in integers.

    Raises:
        UserError: an accumulator beyond 32 bits; names the layer.
    """
    run = _IntegerRun(network, weights, requantization, given or {})
    with evaluating(network):
        logits = run.run(images)
    if ran is not None:
        ran |= run.ran
    return run.codes, logits


class _IntegerRun(fx.Interpreter):
    """Runs the graph and knows of each value on which grid it lies."""

    def __init__(
        self, network: GraphNetwork, weights: Mapping[str, WeightCodes], requantization: str, given: Mapping[str, Tensor]
    ) -> None:
        super().__init__(network)
        self.extra_traceback = False
        self.network, self.weights, self.requantization, self.given = network, weights, requantization, given
        self.points = {node: point for point, node in code_nodes(network).items()}
        self.products = products(network)
        self.sources = grid_nodes(network)
        self.grids: dict[fx.Node, QParams] = {}  # of the points that have run, but for those with a grid per channel
        self.codes: dict[str, Tensor] = {}
        self.ran: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, in integers where it is a layer of codes."""
        module = called_module(self.network, n)
        if isinstance(module, FakeQuantize):
            return self._quantize(n, module)
        if isinstance(module, _ConvNd | nn.Linear):
            x, weight = self._grid(first_input(n)), self.weights.get(f"{n.target}.weight")
            if x is not None and weight is not None and getattr(module, "padding_mode", "zeros") == "zeros":
                try:
                    return self._layer(n, module, x, weight)
                except UserError as error:
                    raise UserError(f"{n.target}: {error.key}", error.value, allowed=error.allowed) from None
        if n in self.products and all(self._grid(operand) is not None for operand in n.all_input_nodes):
            return self._product(n)
        return super().run_node(n)

    def _grid(self, node: fx.Node) -> QParams | None:
        """The grid that a node's value lies on; None where there is none, or one per channel."""
        source = self.sources.get(node)
        return None if source is None else self.grids.get(source)

    def _quantize(self, node: fx.Node, quantizer: FakeQuantize) -> Tensor:
        """The values of an activation point, by division; exact where they are values of its codes already."""
        x = self.env[first_input(node)]
        qparams = qparams_of(quantizer, x)
        codes = quantize_affine(x, qparams, arithmetic="divide")
        point = self.points[node]
        self.codes[point] = codes.to(torch.int32)
        if qparams.axis is None:
            self.grids[node] = qparams
        return dequantize_affine(self.given.get(point, codes), qparams)

    def _product(self, node: fx.Node) -> Tensor:
        """The values of a product's codes, or of its accumulators where no quantizer follows."""
        self.ran.add(self.products[node])
        operands, (y, clamp) = [], self._target(node)
        for operand in (first_input(node), node.args[1]):
            assert isinstance(operand, fx.Node)
            grid = self._grid(operand)
            assert grid is not None
            operands.append((codes_from(self.env[operand], grid), grid))
        y = None if clamp is not None else y
        try:
            result = integer_product(operands[0], operands[1], y, requantization=self.requantization)
        except UserError as error:
            raise UserError(f"{self.products[node]}: {error.key}", error.value, allowed=error.allowed) from None
        return result if y is None else dequantize_affine(result, y)

    def _layer(self, node: fx.Node, layer: Layer, x: QParams, weight: WeightCodes) -> Tensor:
        """The values of a layer's codes, or of its accumulators where no quantizer follows."""
        self.ran.add(str(node.target))
        scale, source = accumulator_scale(x, weight.qparams, shared_groups(layer)), first_input(node)
        bias = None if layer.bias is None or self._is_dynamic(source) else bias_codes(layer.bias, scale)
        codes = codes_from(self.env[source], x)
        if layer.bias is not None and bias is None:  # beyond 32 bits, or at a step that only the batch decides: added in float
            sums = integer_layer(layer, codes, x, weight, None)
            return sums + along_channels(layer.bias, sums, channel_axis(layer))
        y, clamp = self._target(node)
        result = integer_layer(layer, codes, x, weight, y, bias=bias, clamp=clamp, requantization=self.requantization)
        return result if y is None else dequantize_affine(result, y)

    def _target(self, node: fx.Node) -> tuple[QParams | None, Clamp | None]:
        """The grid that a layer's result goes to, and the clamp before it; neither where several readers or others come first."""
        clamp, reader = None, next(iter(node.users), None)
        if len(node.users) == 1 and reader is not None and reader not in self.points and reader.op.startswith("call"):
            clamp = clamps_of(reader, called_module(self.network, reader))
            if clamp is not None and len(reader.users) == 1:
                node, reader = reader, next(iter(reader.users))
        if len(node.users) != 1 or reader is None:
            return None, None
        quantizer = quantizer_at(self.network, reader)
        if quantizer is None or quantizer.spec.dynamic or quantizer.axis is not None:
            return None, None
        return quantizer.qparams, clamp

    def _is_dynamic(self, node: fx.Node) -> bool:
        """True for an activation point whose grid is that of each batch."""
        quantizer = quantizer_at(self.network, node)
        return quantizer is not None and quantizer.spec.dynamic
