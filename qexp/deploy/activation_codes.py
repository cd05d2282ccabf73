"""The codes of a quantized network's activations, as the simulation computes them and as a file names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qexp.base.types import QParams
from qexp.deploy.graph_nodes import first_input, quantizer_at
from qexp.nn.fake_quantize import FakeQuantize, range_qparams
from qexp.nn.graph import GraphNetwork, evaluating
from qexp.quant.affine import quantize_affine


@dataclass(frozen=True)
class CodeTensor:
    """The codes of an activation point in a file.

    Args:
        name: of the tensor.
        offset: what was added to qexp's codes.
    """

    name: str
    offset: int


def code_nodes(network: GraphNetwork) -> dict[str, fx.Node]:
    """Activation point -> the node that quantizes it, in order of execution.

    A point that joins several values has several nodes: the second is called NAME_1.
    """
    nodes: dict[str, fx.Node] = {}
    counts: dict[str, int] = {}
    for node in network.graph.nodes:
        quantizer = quantizer_at(network, node)
        if quantizer is not None:
            number = counts.get(quantizer.name, 0)
            counts[quantizer.name] = number + 1
            nodes[f"{quantizer.name}_{number}" if number else quantizer.name] = node
    return nodes


def qparams_of(quantizer: FakeQuantize, x: Tensor) -> QParams:
    """The grid of an activation point: its own, or that of a batch's range where the quantizer is dynamic.

    Args:
        quantizer: at the point.
        x: the batch's values there.
    """
    if not quantizer.spec.dynamic:
        return quantizer.qparams
    axis = quantizer.axis
    ends = torch.aminmax(x) if axis is None else torch.aminmax(x.movedim(axis, 0).flatten(1), dim=1)
    return range_qparams(*ends, quantizer.spec)


def codes_from(values: Tensor, qparams: QParams) -> Tensor:
    """The codes, int32, of values that lie on a grid."""
    return quantize_affine(values, qparams, arithmetic="divide").to(torch.int32)


class _CodeRecorder(fx.Interpreter):
    """Runs a simulation and keeps the codes of its activation points."""

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__(network)
        self.network = network
        self.points = {node: point for point, node in code_nodes(network).items()}
        self.codes: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        quantizer = quantizer_at(self.network, n)
        if quantizer is None:
            return super().run_node(n)
        qparams = qparams_of(quantizer, self.env[first_input(n)])  # before it runs, which may overwrite its operand
        value = super().run_node(n)
        self.codes[self.points[n]] = codes_from(value, qparams)
        return value


@torch.no_grad()
def simulated_codes(network: GraphNetwork, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The codes of every activation point, int32, as the simulation has them, and the logits.

    Args:
        network: with fake quantization, in eval mode.
        images: [N, C, H, W] float32.
    """
    recorder = _CodeRecorder(network)
    with evaluating(network):
        logits = recorder.run(images)
    return recorder.codes, logits


@torch.no_grad()
def load_values_(network: GraphNetwork, values: Mapping[str, Tensor]) -> None:
    """Give a simulation what a file holds otherwise: biases, rounded to steps of the accumulators, and coarser weights; in place.

    Nothing else keeps a simulation from the integers but exact ties and the order of float sums. ResNet-20 trained on CIFAR-10,
    500 test images, ONNX Runtime against the simulation, logit SQNR and equal predictions: at W8A8 33.3 dB and 98.8 % before,
    45.4 dB and all after; at W4A4, where a step of the accumulator is coarse, 7.3 dB and 69 % before, 142 dB and all after.

    Args:
        network: shares its parameters with whatever it was made from.
        values: of `qexp.deploy.lower.Lowered.values_in`, or `biases` of `qexp.deploy.onnx.qdq.Exported` alone.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, value in values.items():
        parameters[name].copy_(value)
