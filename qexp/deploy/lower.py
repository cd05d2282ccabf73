"""From a prepared job to what a file is written of: the simulated network as a graph, and the integer codes of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.deploy.coded_network import Coded, coded
from qexp.deploy.weight_codes import WeightCodes, has_codes, weight_codes
from qexp.experiment.build import Builder
from qexp.experiment.job import Prepared
from qexp.experiment.variants import Variant
from qexp.nn.fake_quant import fake_quants, insert
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import GraphNetwork, trace
from qexp.qat.convert import assemble


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network ready to be written to a file.

    Args:
        network: simulates, in eval mode on the CPU. weights: state-dict name -> codes. notes: what stays float, and why.
    """

    network: GraphNetwork
    weights: Mapping[str, WeightCodes]
    notes: tuple[str, ...] = ()


def example_of(prepared: Prepared) -> Tensor:
    """One image of zeros, [1, C, H, W] float32."""
    return torch.zeros(1, *prepared.bundle.image_shape)


def lower(prepared: Prepared, variant: Variant) -> Lowered:
    """The copy that a variant is, as `qexp.evaluate` builds it.

    Raises:
        UserError: what building it raises; names the tensor or the layer.
    """
    if variant.is_float:
        return lower_float(prepared, fold=variant.config.correct.fold_bn)
    if prepared.converted is not None:
        return _lower_trained(prepared)
    built = Builder(prepared, prepared.network().eval()).build(variant)
    grids = {name: (spec, None) for name, spec in variant.plan.quantized.items()}
    options = {"reference": built.reference, "limits": built.limits, "constant": built.constant}
    return _lowered(coded(built.module, example_of(prepared), grids, **options), built.notes)


def lower_float(prepared: Prepared, *, fold: bool = True) -> Lowered:
    """The float network, batch norm folded where asked for: what a quantized one is compared with."""
    network = prepared.network().eval()
    if not fold or prepared.converted is not None:
        return Lowered(trace(network, example_of(prepared)).build().eval(), {})
    folded = fold_batch_norm(network)
    return Lowered(trace(network, example_of(prepared)).build((), folded.model).eval(), {}, folded.notes)


def lower_untried(prepared: Prepared, variant: Variant) -> Lowered:
    """The structure of `lower`, before any calibration: every place has the range -1 or 0 to 1, and weights their nearest codes.

    Whether a file can hold a network depends on nothing else, so that a mistake is found before anything is measured.
    """
    if variant.is_float or prepared.converted is not None:
        return lower(prepared, variant)
    network = prepared.network().eval()
    traced = trace(network, example_of(prepared))
    plain = fold_batch_norm(network).model if variant.config.correct.fold_bn else network
    module = insert(traced, variant.plan, plain).eval()
    known = {row.info.name: row.info.non_negative for row in variant.plan.activations}
    for name, place in fake_quants(module).items():
        if not place.spec.dynamic:
            low = 0.0 if known[name] else -1.0  # zero points as they will be: a runtime may load one and not the other
            place.set_range(torch.full_like(place.scale, low), torch.full_like(place.scale, 1.0))
    tensors = _tensors(plain)
    coded = {name: spec for name, spec in variant.plan.quantized.items() if has_codes(spec) and name in tensors}
    weights = {name: weight_codes(tensors[name], spec) for name, spec in coded.items() if bool(tensors[name].any())}
    return Lowered(module, weights)


def _lower_trained(prepared: Prepared) -> Lowered:
    """A network that was trained with its quantization."""
    module = assemble(prepared.untrained(), prepared.converted, example_of(prepared))
    return _lowered(coded(module, example_of(prepared), prepared.converted.weights))


def _lowered(found: Coded, notes: Sequence[str] = ()) -> Lowered:
    return Lowered(found.network, found.weights, (*notes, *(f"{name}: stays float, {why}" for name, why in found.left.items())))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
