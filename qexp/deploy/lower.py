"""From a prepared job to what a file is written of: the simulated network as a graph, and the integer codes of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qexp.base.modules import named_tensors
from qexp.base.text import Note
from qexp.deploy.coded_network import CodedNetwork, code_network, names_read
from qexp.deploy.dead_channels import floor_dead_channels
from qexp.deploy.in_float import InFloat, in_float_weight, is_in_float
from qexp.deploy.weight_codes import WeightCodes, has_codes, weight_codes
from qexp.experiment.build import Builder
from qexp.experiment.job import Prepared
from qexp.experiment.variants import Variant
from qexp.nn.fake_quant import fake_quants, insert
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import GraphNetwork, trace
from qexp.nn.plain_layers import layers_as_modules
from qexp.qat.convert import Converted, assemble
from qexp.quant.schemes import quantize_


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network ready to be written to a file.

    Args:
        network: simulates, in eval mode on the CPU.
        weights: state-dict name -> codes.
        notes: what stays float or is written otherwise, and why.
        floored: names of the weights whose dead channels are coarser than the network has them.
        in_float: state-dict name -> numbers or codes of weights that runtimes compute with in float.
    """

    network: GraphNetwork
    weights: Mapping[str, WeightCodes]
    notes: tuple[str, ...] = ()
    floored: tuple[str, ...] = ()
    in_float: Mapping[str, InFloat] = field(default_factory=dict)

    def values_in(self, biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """State-dict name -> values, where a file has others than the network.

        Args:
            biases: of the file, `qexp.deploy.onnx.qdq.Exported.biases`.
        """
        return {name: self.weights[name].values for name in self.floored} | dict(biases)


def example_of(prepared: Prepared) -> Tensor:
    """One image of zeros, [1, C, H, W] float32."""
    return torch.zeros(1, *prepared.bundle.image_shape)


def lower(prepared: Prepared, variant: Variant) -> Lowered:
    """The copy that a variant is, as `qexp.evaluate` builds it.

    Args:
        prepared: the merged job.
        variant: of the job.

    Raises:
        UserError: what building it raises; names the tensor or the layer.
    """
    if variant.is_float:
        return lower_float(prepared, fold=variant.config.correct.fold_bn)
    if prepared.converted is not None:
        return _lower_converted(prepared, prepared.converted)
    built = Builder(prepared, prepared.network().eval()).build(variant)
    coded = code_network(
        built.module,
        example_of(prepared),
        {name: (spec, None) for name, spec in variant.plan.quantized.items()},
        reference=built.reference,
        limits=built.limits,
        constant=built.constant,
    )
    return _lowered(coded, (*(note for outcome in built.outcomes.values() for note in outcome.left), *built.notes))


def lower_float(prepared: Prepared, *, fold: bool = True) -> Lowered:
    """The float network: what a quantized one is compared with.

    Args:
        prepared: the job.
        fold: fold batch norm.
    """
    network = prepared.network().eval()
    if not fold or prepared.converted is not None:
        return Lowered(layers_as_modules(trace(network, example_of(prepared)).build()).eval(), {})
    folded = fold_batch_norm(network, example_of(prepared))
    return Lowered(layers_as_modules(trace(network, example_of(prepared)).build((), folded.model)).eval(), {}, folded.notes)


def lower_untried(prepared: Prepared, variant: Variant) -> Lowered:
    """The structure of `lower`, before any calibration: quantizers with the range -1 or 0 to 1, and weights' nearest codes.

    Whether a file can hold a network depends on nothing else, so that a mistake is reported before anything is measured.

    Args:
        prepared: the merged job.
        variant: of the job.
    """
    if variant.is_float or prepared.converted is not None:
        return lower(prepared, variant)
    network = prepared.network().eval()
    traced = trace(network, example_of(prepared))
    plain = fold_batch_norm(network, example_of(prepared)).model if variant.config.correct.fold_bn else network
    module = layers_as_modules(insert(traced, variant.plan, plain)).eval()
    non_negative = {row.info.name: row.info.non_negative for row in variant.plan.activations}
    for name, quantizer in fake_quants(module).items():
        if not quantizer.spec.dynamic:
            low = 0.0 if non_negative[name] else -1.0  # zero points as they will be: a runtime may load one and not the other
            quantizer.set_range(torch.full_like(quantizer.scale, low), torch.full_like(quantizer.scale, 1.0))
    tensors = named_tensors(module)
    weights: dict[str, WeightCodes] = {}
    in_float: dict[str, InFloat] = {}
    for name, spec in variant.plan.quantized.items():
        if is_in_float(spec) and name in tensors and bool(tensors[name].any()):
            rounded = quantize_(torch.empty_like(tensors[name]), tensors[name], spec)
            weight = in_float_weight(name, rounded, tensors[name], spec)
            in_float |= dict.fromkeys(names_read(module, name, tensors), weight)
        if has_codes(spec) and name in tensors and bool(tensors[name].any()):
            weights |= dict.fromkeys(names_read(module, name, tensors), weight_codes(tensors[name], spec))
    return Lowered(module, weights, in_float=in_float)


def _lower_converted(prepared: Prepared, converted: Converted) -> Lowered:
    """A network that was trained with its quantization."""
    module = assemble(prepared.untrained(), converted, example_of(prepared))
    return _lowered(code_network(module, example_of(prepared), converted.weights))


def _lowered(coded: CodedNetwork, notes: Sequence[str] = ()) -> Lowered:
    kept_float = [Note(name, f"stays float, {why}") for name, why in coded.kept_float.items()]
    weights = floor_dead_channels(coded.network, coded.weights)
    floored = tuple(name for name, weight in weights.items() if weight is not coded.weights[name])
    coarser = [Note(name, "nearly dead channels have larger steps, so that the bias fits int32") for name in floored]
    return Lowered(coded.network, weights, (*notes, *kept_float, *coarser), floored, coded.in_float)
