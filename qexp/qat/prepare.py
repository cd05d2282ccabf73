"""A network made ready to be trained with its quantization, without an edit of its source.

The graph of its eval mode gets a quantizer at each planned activation; each planned weight is computed anew from its float master
copy by `torch.nn.utils.parametrize`, or, where a function reads it, by a module in the graph. The graph is eval mode's: auxiliary
heads do not take part, nor do dropout and stochastic depth that are functions and not modules, within attention too. Modules go
by their mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from qexp.base.errors import UserError
from qexp.base.text import Note
from qexp.base.types import Plan
from qexp.config.qat import QatSettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.nn.channels import as_layer, as_norm
from qexp.nn.fake_quant import CONTAINER, planned_points
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import GraphNetwork, Insertion, Traced, evaluating, trace
from qexp.qat.folded_weight import FoldedWeight
from qexp.qat.methods import QatMethod
from qexp.qat.quantizers import BaseQuantizer, Quantizer
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.schemes import quantize_

WEIGHTS = "weight_fake_quant"  # where quantizers of weights lie that a function reads, by the weights' names
_MASTER = re.compile(r"parametrizations\.(\w+)\.original$")
_IN_QUANTIZER = re.compile(rf"^({CONTAINER}|{WEIGHTS})\.|(^|\.)parametrizations\.")


@dataclass(frozen=True)
class QatNetwork:
    """A network with quantizers in it.

    Args:
        module: what is trained; takes and gives what the network does.
        plan: what is quantized.
        settings: how.
        weights: name of each quantized weight -> its quantizer; empty where stored weights are overwritten.
        activations: activation point -> its quantizer.
        norms: with folding, name of each batch norm that is -> the layer before it.
        unfolded: with folding, the others, and why.
        traced: of the network.
        network: it, whose modules the trained one shares.
        inserted_weights: quantizers of weights that functions read.
    """

    module: GraphNetwork
    plan: Plan
    settings: QatSettings
    weights: Mapping[str, BaseQuantizer | FoldedWeight]
    activations: Mapping[str, Quantizer]
    norms: Mapping[str, str]
    traced: Traced
    network: nn.Module
    inserted_weights: tuple[Insertion, ...] = ()
    unfolded: tuple[Note, ...] = ()

    def quantizers(self) -> Iterable[tuple[str, BaseQuantizer]]:
        """Every quantizer, by its path in the module."""
        return ((name, module) for name, module in self.module.named_modules() if isinstance(module, BaseQuantizer))

    def masters(self) -> dict[str, Tensor]:
        """The float network's state dict: what is trained, not quantized; references."""
        return {
            _MASTER.sub(r"\1", name): value
            for name, value in self.module.state_dict().items()
            if _MASTER.search(name) or not _IN_QUANTIZER.search(name)
        }

    @torch.no_grad()
    def overwrite_weights(self) -> None:
        """The stored weights become their quantized values, after each update of a method whose row says so."""
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        for row in self.plan.rows:
            if row.spec is None or row.info.tied_to in self.plan.quantized:
                continue
            weight = parameters[row.info.name]
            try:
                quantize_(weight, weight, row.spec)
            except ConstantTensorError:
                continue  # it stays, until an update makes it one with a range


def prepare(network: nn.Module, plan: Plan, settings: QatSettings, example: Tensor) -> QatNetwork:
    """Put quantizers into a network, without values yet: `initialise`, or a state dict of an earlier run, gives them.

    Args:
        network: on the device where it trains; its parameters and modules become those of the result, which alone is to be used
            from here on.
        plan: of its tensors and of its activations, if those are quantized.
        settings: the method.
        example: one image, on that device.

    Raises:
        UserError: a network that cannot be traced; a planned tensor that is no parameter.
    """
    traced = trace(network, example)
    norms: Mapping[str, str] = {}
    unfolded: tuple[Note, ...] = ()
    if settings.batch_norm == "folded":
        with evaluating(network):
            folded = fold_batch_norm(network)
        norms, unfolded = folded.layers, folded.notes
    insertions: list[Insertion] = []
    activations: dict[str, Quantizer] = {}
    method = qat_method(settings)
    for name, point in planned_points(traced, plan.quantized_activations).items():
        quantizer = method.activation_quantizer(point.info, plan.quantized_activations[name], settings).to(example.device)
        activations[name] = quantizer
        insertions += [Insertion(node, f"{CONTAINER}.{name}", quantizer, point.users) for node in point.nodes]
    weights, inserted = _quantize_weights(traced, network, plan, settings, norms)
    trained = traced.build([*insertions, *inserted], network)
    _freeze_what_does_not_run(trained)
    return QatNetwork(trained, plan, settings, weights, activations, norms, traced, network, tuple(inserted), unfolded)


def _quantize_weights(
    traced: Traced, network: nn.Module, plan: Plan, settings: QatSettings, norms: Mapping[str, str]
) -> tuple[dict[str, BaseQuantizer | FoldedWeight], list[Insertion]]:
    """The quantizers of the weights, put into their modules, or to be inserted where functions alone read them."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for name in plan.quantized:
        path, _, leaf = name.rpartition(".")
        if leaf not in modules[path]._parameters:
            raise UserError("policy.rules", name, allowed=f"a parameter, with qat={settings.name}")
    if settings.method.overwrites_weights:
        return {}, []
    method = qat_method(settings)
    norm_behind = {layer: as_norm(modules[norm]) for norm, layer in norms.items()}
    readers, called = _readers(traced), {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    by_parameter: dict[nn.Parameter, BaseQuantizer | FoldedWeight] = {}  # one for all names of a parameter
    weights: dict[str, BaseQuantizer | FoldedWeight] = {}
    parametrizations: dict[tuple[nn.Module, str], BaseQuantizer | FoldedWeight] = {}
    inserted: list[Insertion] = []
    for name, spec in plan.quantized.items():
        path, _, leaf = name.rpartition(".")
        weight = modules[path].get_parameter(leaf)
        if weight not in by_parameter:
            quantizer = method.weight_quantizer(weight, spec, settings)
            assert quantizer is not None, "as its row says"
            quantizer = quantizer.to(weight.device)
            folds = leaf == "weight" and path in norm_behind
            by_parameter[weight] = FoldedWeight(quantizer, as_layer(modules[path]), norm_behind[path]) if folds else quantizer
        weights[name] = by_parameter[weight]
        if name in readers and path not in called:
            inserted += [Insertion(node, f"{WEIGHTS}.{name}", weights[name]) for node in readers[name]]
        else:
            parametrizations[modules[path], leaf] = weights[name]
    for (module, leaf), parametrization in parametrizations.items():
        # Not tried out on the weight, as it has no values yet.
        parametrize.register_parametrization(module, leaf, parametrization, unsafe=True)
    return weights, inserted


def qat_method(settings: QatSettings) -> QatMethod:
    """The code of the method."""
    code = QAT_METHODS.load(settings.factory or settings.name)
    assert isinstance(code, type) and issubclass(code, QatMethod), code
    return code()


def _freeze_what_does_not_run(module: GraphNetwork) -> None:
    """Parameters of auxiliary heads and the like get no gradient, for which DistributedDataParallel would wait."""
    targets = {str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr")}
    running: set[nn.Parameter] = set()
    idle: set[nn.Parameter] = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        path = name.split(".")
        runs = any(".".join(path[:end]) in targets for end in range(1, len(path) + 1))
        (running if runs else idle).add(parameter)
    for parameter in idle - running:  # one that is tied may run under another of its names
        parameter.requires_grad_(False)


def _readers(traced: Traced) -> dict[str, list[fx.Node]]:
    """Parameter -> the nodes that fetch it for a function."""
    readers: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), []).append(node)
    return readers
