"""A network made ready to be trained with its quantization, without an edit of its source.

The graph of its eval mode gets a quantizer at each planned activation; each planned weight is computed anew from its float master
copy by `torch.nn.utils.parametrize`, or, where a function reads it, by a module in the graph. The graph is eval mode's: auxiliary
heads do not take part, nor do dropout and stochastic depth that are functions and not modules. Modules go by their mode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from qexp.base.errors import UserError
from qexp.base.types import ActivationInfo, Batch, Plan, QuantSpec
from qexp.config.calibrate import CalibrateSettings
from qexp.config.qat import SCHEMES, QatSettings
from qexp.nn.fake_quant import CONTAINER, observed, planned_points
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import GraphNetwork, Insertion, Traced, evaluating, trace
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.ptq.calibrate import calibrate
from qexp.ptq.range_methods import weight_range
from qexp.qat.moments import Moments, magnitudes, weight_moments
from qexp.qat.quantizers import ClippedRange, DorefaWeight, FoldedWeight, LearnedStep, ObservedRange, Quantizer, WeightRange
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
        module: what is trained; takes and gives what the network does.
        plan: what is quantized.
        settings: how.
        weights: name of each quantized weight -> its quantizer; empty for `every_step`.
        activations: place -> its quantizer.
        norms: with folding, name of each batch norm that is -> the layer before it.
        traced: of the network.
        network: it, whose modules the trained one shares.
        inserted_weights: quantizers of weights that functions read.
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
    if settings.batch_norm == "folded":
        with evaluating(network):
            norms = fold_batch_norm(network).layers
    device = example.device
    insertions, activations = [], {}
    for name, place in planned_points(traced, plan.quantized_activations).items():
        module = activations[name] = _of_activation(place.info, plan.quantized_activations[name], settings).to(device)
        insertions += [Insertion(node, f"{CONTAINER}.{name}", module, place.users) for node in place.nodes]
    weights, inserted = _weights(traced, network, plan, settings, norms)
    module = traced.build([*insertions, *inserted], network)
    _freeze_what_does_not_run(module)
    return QatNetwork(module, plan, settings, weights, activations, norms, traced, network, tuple(inserted))


def _weights(
    traced: Traced, network: nn.Module, plan: Plan, settings: QatSettings, norms: Mapping[str, str]
) -> tuple[dict[str, Quantizer | FoldedWeight], list[Insertion]]:
    """The quantizers of the weights, put into their modules, or to be inserted where functions alone read them."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for name in plan.quantized:
        path, _, leaf = name.rpartition(".")
        if leaf not in modules[path]._parameters:
            raise UserError("policy.rules", name, allowed=f"a parameter, with qat={settings.name}")
    if settings.name == "every_step":
        return {}, []
    behind = {layer: modules[norm] for norm, layer in norms.items()}
    readers, called = _readers(traced), {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    made: dict[nn.Parameter, Quantizer | FoldedWeight] = {}  # one for all names of a parameter
    weights, places, inserted = {}, {}, []
    for name, spec in plan.quantized.items():
        path, _, leaf = name.rpartition(".")
        weight = modules[path]._parameters[leaf]
        if weight not in made:
            quantizer = _of_weight(weight, spec, settings).to(weight.device)
            folds = leaf == "weight" and path in behind
            made[weight] = FoldedWeight(quantizer, modules[path], behind[path]) if folds else quantizer
        weights[name] = made[weight]
        if name in readers and path not in called:
            inserted += [Insertion(node, f"{WEIGHTS}.{name}", weights[name]) for node in readers[name]]
        else:
            places[modules[path], leaf] = weights[name]
    for (module, leaf), quantizer in places.items():
        # Not tried out on the weight, as it has no values yet.
        parametrize.register_parametrization(module, leaf, quantizer, unsafe=True)
    return weights, inserted


def initialise(qat: QatNetwork, batches: Callable[[], Iterable[Batch]], settings: CalibrateSettings) -> None:
    """Give the quantizers their first values: weights from themselves, activations from calibration images.

    Activations are seen as the network with quantized weights and float activations makes them. Every rank sees all images, so
    that all begin with the same values. Batch norm normalizes as it will in training; where weights are squashed, it keeps these
    running statistics.

    Args:
        qat: of `prepare`.
        batches: gives the calibration images anew at each call.
        settings: the method that finds the ranges from which `ste`, `lsq_plus`, `pact` and `every_step` begin.
    """
    masters = qat.masters()
    for name, each in qat.weights.items():
        quantizer = each.quantizer if isinstance(each, FoldedWeight) else each
        with torch.no_grad():
            values = each.folded(masters[name]) if isinstance(each, FoldedWeight) else masters[name]
        moments = weight_moments(values, quantizer.axis, three_sigma=qat.settings.name == "lsq_plus")
        if qat.settings.first_step == "calibrated":
            low, high = weight_range(values, quantizer.spec, settings)
            moments = replace(moments, minimum=low, maximum=high, ranged=True)
        quantizer.initialise(moments)
    if qat.settings.name == "every_step":
        qat.overwrite_weights()
    if not qat.activations:
        return
    layers_only = next(iter(qat.plan.quantized_activations.values())).layers_only
    # Not the trained module, whose activations are to be quantized, but another graph over the same weights.
    watched = observed(qat.traced, layers_only=layers_only, network=qat.network, extra=qat.inserted_weights)
    with _normalized(watched, qat.settings, batches):
        found = _activation_moments(qat, watched, batches, settings)
    device = next(iter(masters.values())).device
    for name, quantizer in qat.activations.items():
        quantizer.initialise(_on(found[name], device))


@contextmanager
def _normalized(watched: nn.Module, settings: QatSettings, batches: Callable[[], Iterable[Batch]]) -> Iterator[None]:
    """Batch norm's running statistics are those of the quantized weights, as the batches' will be from the first step on.

    Those of other weights do not normalize what these give, and the error grows from layer to layer. Measured on ResNet-20, LSQ's
    first steps would else be up to 2.6 times too small (pretrained, 2-bit weights; at 4 bits within a quarter), and with random
    weights, whose running statistics say nothing yet, up to 12 times too large. Afterwards they are as before; but weights that
    reach from -1 to 1, whatever they were, keep the new ones.
    """
    squashed = SCHEMES[settings.name][0] == "dorefa"
    if settings.freeze_bn_epoch == 1 and not squashed:
        yield  # the running statistics are what it trains with
        return
    norms = [module for module in watched.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    folded = [module for module in watched.modules() if isinstance(module, FoldedWeight)]
    try:
        for each in folded:  # what is folded in stays what the weights' step sizes were chosen for
            each.held = each.factor().detach()
        # One image may leave one value per channel, which has no variance.
        reestimate_batch_norm_(watched, (batch for batch in batches() if len(batch.images) > 1))
        yield
    finally:
        for each in folded:
            each.held = None
        for norm, (mean, var) in zip(norms, kept, strict=True):
            if not squashed:
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)


def _activation_moments(
    qat: QatNetwork, watched: nn.Module, batches: Callable[[], Iterable[Batch]], settings: CalibrateSettings
) -> dict[str, Moments]:
    """Of every place, what its quantizer begins from."""
    ranged = {name for name, each in qat.activations.items() if _begins_with_range(each, qat.settings)}
    ranges = {}
    if ranged:
        places = {f"{CONTAINER}.{name}": qat.plan.quantized_activations[name] for name in ranged}
        alone = {"split": settings.split, "data_fingerprint": "", "gather": lambda own: [own]}  # every rank has seen everything
        found = calibrate(watched, batches, places, settings, **alone)
        ranges = {name: found.ranges[f"{CONTAINER}.{name}"] for name in ranged}
    nothing = torch.tensor(torch.nan)
    moments = {name: Moments(minimum=low, maximum=high, mean_abs=nothing, ranged=True) for name, (low, high) in ranges.items()}
    sizes = magnitudes(watched, batches()) if len(ranged) < len(qat.activations) else {}
    for name in qat.activations.keys() - ranged:
        mean, largest = sizes[name]
        moments[name] = Moments(minimum=-largest, maximum=largest, mean_abs=mean)
    return moments


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
    return settings.name in _FROM_RANGE or settings.first_step == "calibrated"


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
    running, idle = set(), set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        path = name.split(".")
        runs = any(".".join(path[:end]) in targets for end in range(1, len(path) + 1))
        (running if runs else idle).add(parameter)
    for parameter in idle - running:  # one that is tied may run under another of its names
        parameter.requires_grad_(False)


def _readers(traced: Traced) -> dict[str, list[fx.Node]]:
    """Parameter -> the nodes that fetch it for a function."""
    found: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            found.setdefault(str(node.target), []).append(node)
    return found
