"""Quantized copies that take more than rounding each weight to its nearest code; each is built anew for every state.

In the order of `CORRECTIONS`, each a switch of the user's: batch norm is folded, channels are equalized, high biases absorbed;
weights are rounded within limits that `calibrate.weights` finds, to the nearest code or as AdaRound learns; biases are corrected,
the batch norms that are left re-estimated; last the ranges of the activations are found on the network as it is by then, or taken
from `calibrate.file`, and fake quantization goes to the places that the plan names. Calibration images are seen by all ranks
alike where a correction learns from them, and in shares where only ranges are found.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from qexp.base import dist
from qexp.base.errors import UserError
from qexp.base.types import ActivationRow, Batch, QuantSpec
from qexp.config.outcome import Outcome
from qexp.experiment.job import Prepared
from qexp.experiment.variants import Variant
from qexp.nn.channels import as_norm, scale_and_shift
from qexp.nn.fake_quant import CONTAINER, fake_quants, insert, observed
from qexp.nn.graph import Traced, trace
from qexp.nn.input_quant import INPUT_QUANTS
from qexp.nn.shadow import Shadow, names_by_memory
from qexp.ptq.calibrate import Observations, calibrate
from qexp.ptq.calibration import Calibration, hash_tensors
from qexp.ptq.corrections import Copy
from qexp.ptq.range_methods import BehindNorm, Limits, weight_range
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.schemes import quantize_


@dataclass(frozen=True)
class Built:
    """A quantized copy: float32 images -> float32 logits.

    Args:
        module: in eval mode.
        reference: the float network that it was made from, folded and equalized as asked.
        limits: weight -> what `calibrate.weights` clipped it to.
        calibration: of its activations, None where none are static.
        constant: planned weights without a range.
        outcomes: row of each correction -> what it did.
        notes: what else the reader should know.
    """

    module: nn.Module
    reference: nn.Module
    limits: Mapping[str, Limits] = field(default_factory=dict)
    calibration: Calibration | None = None
    constant: tuple[str, ...] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Builder:
    """Builds copies of the states of one network.

    Args:
        prepared: the merged job.
        network: the float network, on the device; in eval mode with the state's weights at each call.
    """

    def __init__(self, prepared: Prepared, network: nn.Module) -> None:
        self.prepared, self.network = prepared, network
        self.device = next(network.parameters()).device
        self._traced: Traced | None = None
        self._observations = Observations()  # variants that differ in their ranges alone come one after the other

    def build(self, variant: Variant) -> Built:
        """The copy of the network's present weights that a variant asks for.

        Raises:
            UserError: a correction or a range that the network does not have; names the tensor or the layer.
        """
        config = variant.config
        work = Copy(self.network, None, config.correct, config.seed, self._example(), lambda: self._all(variant))
        _correct(work, "before")
        work.rounded = quantized = copy.deepcopy(work.reference)
        work.limits = self._limits(variant, work.reference)
        constant = tuple(_round_weights(quantized, variant, work.limits))
        work.specs = {name: spec for name, spec in variant.plan.quantized.items() if name not in constant}
        _correct(work, "after")
        dist.broadcast_state(quantized)  # sums on a GPU may differ in their last bit from rank to rank
        module, calibration = self._with_activations(variant, quantized)
        reused = variant.calibration
        if reused is not None and reused.weights_hash != hash_tensors(quantized.state_dict()):
            work.notes.append("the ranges of calibrate.file were found with other weights than these")
        module = self._with_input(variant, module)
        notes = tuple(dict.fromkeys(work.notes))
        return Built(module, work.reference, work.limits, calibration, constant, work.outcomes, notes)

    @staticmethod
    def _limits(variant: Variant, reference: nn.Module) -> dict[str, Limits]:
        """Weight -> what `calibrate.weights` clips it to; empty where that is all of its range."""
        settings = variant.config.calibrate
        if not settings.clips_weights:
            return {}
        tensors = dict(reference.named_parameters(remove_duplicate=False))
        return {
            name: weight_range(tensors[name], spec, settings) for name, spec in variant.plan.quantized.items() if name in tensors
        }

    def _with_activations(self, variant: Variant, quantized: nn.Module) -> tuple[nn.Module, Calibration | None]:
        """Fake quantization at the planned places, its ranges found."""
        specs = variant.plan.quantized_activations
        if not specs:
            return quantized.eval(), None
        module = insert(self._trace(), variant.plan, quantized).eval()
        if any(spec.dynamic for spec in specs.values()):
            return module, None
        calibration = variant.calibration or self._calibrate(variant, specs, quantized)
        places = fake_quants(module)
        for name in specs:
            low, high = calibration.ranges[f"{CONTAINER}.{name}"]
            places[name].set_range(low.to(self.device), high.to(self.device))
        return module, calibration

    def _trace(self) -> Traced:
        """The graph of the network, traced once."""
        if self._traced is None:
            self._traced = trace(self.network, self._example())
        return self._traced

    def _example(self) -> Tensor:
        return torch.zeros(1, *self.prepared.bundle.image_shape, device=self.device)

    def _calibrate(self, variant: Variant, specs: Mapping[str, QuantSpec], quantized: nn.Module) -> Calibration:
        """The ranges of the places, found on calibration images."""
        settings = variant.config.calibrate
        layers_only = any(spec.layers_only for spec in specs.values())
        return calibrate(
            observed(self._trace(), layers_only=layers_only, network=quantized).eval(),
            lambda: self.prepared.calibration_images(settings, self.device, rank=dist.rank(), world_size=dist.world_size()),
            {f"{CONTAINER}.{name}": spec for name, spec in specs.items()},
            settings,
            split=settings.split,
            data_fingerprint=self.prepared.bundle.fingerprint,
            norms=self._norms(variant.plan.activations) if settings.method.reads == "batch_norm" else None,
            known=self._observations,
        )

    def _norms(self, rows: Iterable[ActivationRow]) -> dict[str, BehindNorm]:
        """Place -> the batch norm before it, as trained."""
        norms = {}
        for row in rows:
            if row.spec is not None and row.info.norm is not None:
                gamma, beta = scale_and_shift(as_norm(self.network.get_submodule(row.info.norm)))
                last = row.info.operator.rpartition("+")[2]
                ends = {"relu": (0.0, None), "relu6": (0.0, 6.0)}.get(last, (None, None))
                norms[f"{CONTAINER}.{row.info.name}"] = BehindNorm(beta, gamma, *ends)
        return norms

    @staticmethod
    def _with_input(variant: Variant, module: nn.Module) -> nn.Module:
        """What `quant.input` does to the images, before the network."""
        if variant.plan.input_quant != "none":
            quantize = INPUT_QUANTS[variant.plan.input_quant]
            module.register_forward_pre_hook(lambda _, images: (quantize(images[0]),))
        return module

    def _all(self, variant: Variant) -> list[Batch]:
        """The calibration images, on every rank all of them."""
        return list(self.prepared.calibration_images(variant.config.calibrate, self.device))


def _correct(work: Copy, step: Literal["before", "after"]) -> None:
    """Do the corrections that the settings ask for, before or after weights are rounded."""
    for row in work.settings.asked:
        if row.step == step:
            work.reads_images = row.needs_images
            outcome = cast("Callable[[Copy], Outcome]", row.load())(work)
            assert isinstance(outcome, Outcome), f"{row.code} returns what it did"
            work.outcomes[row.name] = outcome


def _round_weights(quantized: nn.Module, variant: Variant, limits: Mapping[str, Limits]) -> Iterator[str]:
    """Overwrite the planned weights with their nearest codes' values; yields the constant ones, which stay."""
    tensors, specs = quantized.state_dict(), variant.plan.quantized
    if gone := next((name for name in specs if name not in tensors), None):
        remedy = "With correct.fold_bn=true batch norms are gone: leave them out of policy.rules."
        raise UserError("policy", gone, allowed="tensors of the folded network", remedy=remedy)
    for name in names_by_memory(tensors, specs):  # a tied weight is rounded once
        if name not in specs:
            continue
        with torch.no_grad():
            try:
                quantize_(tensors[name], tensors[name], specs[name], limits.get(name))
            except ConstantTensorError:
                yield name


def quantized_copy(variant: Variant, network: nn.Module, prepared: Prepared) -> Built:
    """The quantized copy of a float network, made as an evaluation makes it."""
    if variant.is_built:
        return Builder(prepared, network).build(variant)
    half, input_quant = variant.structure
    shadow = Shadow(network, half=half, input_quant=input_quant)
    return Built(shadow.module, network, constant=shadow.load(network.state_dict(), variant.plan))
