"""A network made ready to be trained with its quantization, without an edit of its source.

The graph of its eval mode gets a quantizer at each planned activation; each planned weight is computed anew from its float master
copy by `torch.nn.utils.parametrize`, or, where a function reads it, by a module in the graph. The graph is eval mode's: auxiliary
heads do not take part, nor do dropout and stochastic depth that are functions and not modules. Modules go by their mode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from qexp.base.errors import UserError
from qexp.base.nouns import ActivationInfo, Batch, Plan, QuantSpec
from qexp.calibrate.run import calibrate
from qexp.calibrate.settings import CalibrateSettings
from qexp.nn.fake_quant import CONTAINER, observed, planned_places
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import GraphNetwork, Insertion, Traced, evaluating, trace
from qexp.qat.moments import Moments, mean_magnitudes, weight_moments
from qexp.qat.quantizers import ClippedRange, DorefaWeight, FoldedWeight, LearnedStep, ObservedRange, Quantizer, WeightRange
from qexp.qat.settings import QatSettings
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.schemes import quantize_

WEIGHTS = "weight_fake_quant"  # where quantizers of weights lie that a function reads, by the weights' names
_MASTER = re.compile(r"parametrizations\.(\w+)\.original$")
_IN_QUANTIZER = re.compile(rf"^({CONTAINER}|{WEIGHTS})\.|(^|\.)parametrizations\.")
_FROM_RANGE = ("ste", "lsq_plus", "pact", "every_step")  # methods whose activations begin with a calibrated range


@dataclass(frozen=True)
class QatNetwork:
    """A network with quantizers in it.

    Args:
        module: what is trained; takes and gives what the network does. plan: what is quantized. settings: how.
        weights: name of each quantized weight -> its quantizer; empty for `every_step`. activations: place -> its quantizer.
        norms: with folding, name of each batch norm that is -> the layer before it.
        traced: of the network. network: it, whose modules the trained one shares. inserted_weights: quantizers of weights that
            functions read.
    """

    module: GraphNetwork
    plan: Plan
    settings: QatSettings
    weights: Mapping[str, Quantizer | FoldedWeight]
    activations: Mapping[str, Quantizer]
    norms: Mapping[str, str]
    traced: Traced
    network: nn.Module
    inserted_weights: tuple[Insertion, ...] = ()

    def quantizers(self) -> Iterable[tuple[str, Quantizer]]:
        """Every quantizer, by its path in the module."""
        return ((name, each) for name, each in self.module.named_modules() if isinstance(each, Quantizer))

    def masters(self) -> dict[str, Tensor]:
        """The float network's state dict: what is trained, not quantized; references."""
        return {
            _MASTER.sub(r"\1", name): value
            for name, value in self.module.state_dict().items()
            if _MASTER.search(name) or not _IN_QUANTIZER.search(name)
        }

    @torch.no_grad()
    def overwrite_weights(self) -> None:
        """What `every_step` does after each update: the stored weights become their quantized values."""
        parameters = dict(self.module.named_parameters())
        for name, spec in self.plan.quantized.items():
            try:
                quantize_(parameters[name], parameters[name], spec)
            except ConstantTensorError:
                continue  # it stays, until an update makes it one with a range


def prepare(network: nn.Module, plan: Plan, settings: QatSettings, example: Tensor) -> QatNetwork:
    """Put quantizers into a network, without values yet: `initialise`, or a state dict of an earlier run, gives them.

    Args:
        network: on the device where it trains; its parameters and modules become those of the result, which alone is to be used
            from here on. plan: of its tensors and of its activations, if those are quantized. settings: the method.
        example: one image, on that device.

    Raises:
        UserError: a network that cannot be traced; a planned tensor that is no parameter.
    """
    traced = trace(network, example)
    norms: Mapping[str, str] = {}
    if settings.batch_norm == "folded":
        with evaluating(network):
            norms = fold_batch_norm(network).layers
    device = example.device
    insertions, activations = [], {}
    for name, place in planned_places(traced, plan.quantized_activations).items():
        module = activations[name] = _of_activation(place.info, plan.quantized_activations[name], settings).to(device)
        insertions += [Insertion(node, f"{CONTAINER}.{name}", module, place.users) for node in place.nodes]
    weights: dict[str, Quantizer | FoldedWeight] = {}
    inserted: list[Insertion] = []
    if settings.name != "every_step":
        readers = _readers(traced)
        modules = dict(network.named_modules(remove_duplicate=False))
        behind = {layer: modules[norm] for norm, layer in norms.items()}
        for name, spec in plan.quantized.items():
            path, _, leaf = name.rpartition(".")
            if leaf not in modules[path]._parameters:
                raise UserError("policy.rules", name, allowed=f"a parameter, with qat={settings.name}")
            quantizer = _of_weight(modules[path]._parameters[leaf], spec, settings).to(device)
            if name in readers:
                inserted += [Insertion(node, f"{WEIGHTS}.{name}", quantizer) for node in readers[name]]
            elif leaf == "weight" and path in behind:
                quantizer = FoldedWeight(quantizer, modules[path], behind[path])
            weights[name] = quantizer
        for name, quantizer in weights.items():
            if name not in readers:
                path, _, leaf = name.rpartition(".")
                # Not tried out on the weight, as it has no values yet.
                parametrize.register_parametrization(modules[path], leaf, quantizer, unsafe=True)
    module = traced.build([*insertions, *inserted], network)
    _freeze_what_does_not_run(module)
    return QatNetwork(module, plan, settings, weights, activations, norms, traced, network, tuple(inserted))


def initialise(qat: QatNetwork, batches: Callable[[], Iterable[Batch]], settings: CalibrateSettings) -> None:
    """Give the quantizers their first values: weights from themselves, activations from calibration images.

    Activations are seen as the network with quantized weights and float activations makes them. Every rank sees all images, so
    that all begin with the same values.

    Args:
        qat: of `prepare`. batches: gives the calibration images anew at each call.
        settings: the method that finds the ranges from which `ste`, `lsq_plus`, `pact` and `every_step` begin.
    """
    masters = qat.masters()
    for name, each in qat.weights.items():
        quantizer = each.quantizer if isinstance(each, FoldedWeight) else each
        with torch.no_grad():
            values = each.folded(masters[name]) if isinstance(each, FoldedWeight) else masters[name]
        quantizer.initialise(weight_moments(values, quantizer.axis, three_sigma=qat.settings.name == "lsq_plus"))
    if qat.settings.name == "every_step":
        qat.overwrite_weights()
    if not qat.activations:
        return
    layers_only = next(iter(qat.plan.quantized_activations.values())).layers_only
    # Not the trained module, whose activations are to be quantized, but another graph over the same weights.
    watched = observed(qat.traced, layers_only=layers_only, network=qat.network, more=qat.inserted_weights)
    device = next(iter(masters.values())).device
    ranged = {name for name, each in qat.activations.items() if _begins_with_range(each, qat.settings)}
    ranges = {}
    if ranged:
        places = {f"{CONTAINER}.{name}": qat.plan.quantized_activations[name] for name in ranged}
        alone = {"split": settings.split, "data_fingerprint": "", "gather": lambda own: [own]}  # every rank has seen everything
        found = calibrate(watched, batches, places, settings, **alone)
        ranges = {name: found.ranges[f"{CONTAINER}.{name}"] for name in ranged}
    means = mean_magnitudes(watched, batches()) if len(ranged) < len(qat.activations) else {}
    nothing = torch.tensor(torch.nan)
    for name, quantizer in qat.activations.items():
        low, high = ranges.get(name, (nothing, nothing))
        moments = Moments(minimum=low, maximum=high, mean_abs=means.get(name, nothing))
        quantizer.initialise(_on(moments, device))


def _on(moments: Moments, device: torch.device) -> Moments:
    return replace(
        moments,
        minimum=moments.minimum.to(device),
        maximum=moments.maximum.to(device),
        mean_abs=moments.mean_abs.to(device),
    )


def _begins_with_range(quantizer: Quantizer, settings: QatSettings) -> bool:
    if isinstance(quantizer, ClippedRange):
        return quantizer.end is None
    return settings.name in _FROM_RANGE


def _of_weight(weight: Tensor, spec: QuantSpec, settings: QatSettings) -> Quantizer:
    """The quantizer of a weight."""
    if spec.scheme == "dorefa":
        return DorefaWeight(spec, settings.mask)
    if settings.name == "ste":
        return WeightRange(spec, settings.mask)
    channels = weight.shape[spec.axis] if spec.granularity == "per_channel" else None
    return LearnedStep(spec, settings.mask, weight.numel() // (channels or 1), channels)


def _of_activation(info: ActivationInfo, spec: QuantSpec, settings: QatSettings) -> Quantizer:
    """The quantizer of an activation."""
    if settings.name in ("ste", "every_step"):
        return ObservedRange(spec, settings.mask, settings.momentum)
    if settings.name == "pact":
        return ClippedRange(spec, settings.mask, learned=True)
    if settings.name == "dorefa":
        # Its authors leave the images alone, whose values a clip at one would destroy.
        return ClippedRange(spec, settings.mask, learned=False, end=None if info.operator == "image" else 1.0)
    num_elements = max(1, torch.Size(info.shape).numel())
    return LearnedStep(spec, settings.mask, num_elements, with_offset=settings.name == "lsq_plus")


def _freeze_what_does_not_run(module: GraphNetwork) -> None:
    """Parameters of auxiliary heads and the like get no gradient, for which DistributedDataParallel would wait."""
    targets = {str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr")}
    for name, parameter in module.named_parameters():
        path = name.split(".")
        if not any(".".join(path[:end]) in targets for end in range(1, len(path) + 1)):
            parameter.requires_grad_(False)


def _readers(traced: Traced) -> dict[str, list[fx.Node]]:
    """Parameter -> the nodes that fetch it for a function."""
    found: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            found.setdefault(str(node.target), []).append(node)
    return found
