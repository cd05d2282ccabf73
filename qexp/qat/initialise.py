"""The first values of the quantizers of a network: of weights from themselves, of activations from calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.base.types import Batch
from qexp.config.calibrate import CalibrateSettings
from qexp.config.qat import QatSettings
from qexp.nn.channels import running_statistics
from qexp.nn.fake_quant import CONTAINER, observed
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.ptq.calibrate import calibrate
from qexp.ptq.range_methods import Limits, weight_range
from qexp.qat.folded_weight import FoldedWeight
from qexp.qat.moments import Moments, magnitudes, weight_moments
from qexp.qat.prepare import QatNetwork
from qexp.qat.quantizers import Quantizer


def initialise(qat: QatNetwork, batches: Callable[[], Iterable[Batch]], settings: CalibrateSettings) -> None:
    """Give the quantizers their first values: weights from themselves, activations from calibration images.

    Activations are seen as the network with quantized weights and float activations makes them. Every rank sees all images, so
    that all begin with the same values. Batch norm normalizes as it will in training; where weights are squashed, it keeps these
    running statistics.

    Args:
        qat: of `prepare`.
        batches: gives the calibration images anew at each call.
        settings: the method that finds ranges, where quantizers begin with them.
    """
    masters, method = qat.masters(), qat.settings.method
    for name, module in qat.weights.items():
        quantizer = module.quantizer if isinstance(module, FoldedWeight) else module
        with torch.no_grad():
            values = module.folded(masters[name]) if isinstance(module, FoldedWeight) else masters[name]
        moments = weight_moments(values, quantizer.axis, three_sigma=method.three_sigma)
        if qat.settings.first_step == "calibrated":
            low, high = weight_range(values, quantizer.spec, settings)
            moments = replace(moments, minimum=low, maximum=high, ranged=True)
        quantizer.initialise(moments)
    if method.overwrites_weights:
        qat.overwrite_weights()
    if not qat.activations:
        return
    layers_only = next(iter(qat.plan.quantized_activations.values())).layers_only
    # Not the trained module, whose activations are to be quantized, but another graph over the same weights.
    observed_network = observed(qat.traced, layers_only=layers_only, network=qat.network, extra=qat.inserted_weights)
    with _normalized(observed_network, qat.settings, batches):
        moments_of = _activation_moments(qat, observed_network, batches, settings)
    device = next(iter(masters.values())).device
    for name, quantizer in qat.activations.items():
        quantizer.initialise(_on(moments_of[name], device))


@contextmanager
def _normalized(network: nn.Module, settings: QatSettings, batches: Callable[[], Iterable[Batch]]) -> Iterator[None]:
    """Batch norm's running statistics are those of the quantized weights, as the batches' will be from the first step on.

    Those of other weights do not normalize what these give, and the error grows from layer to layer. Measured on ResNet-20, LSQ's
    first steps would else be up to 2.6 times too small (pretrained, 2-bit weights; at 4 bits within a quarter), and with random
    weights, whose running statistics say nothing yet, up to 12 times too large. Afterwards they are as before; but weights that
    reach from -1 to 1, whatever they were, keep the new ones.
    """
    squashed = settings.method.squashed_weights
    if settings.freeze_bn_epoch == 1 and not squashed:
        yield  # the running statistics are what it trains with
        return
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [[value.clone() for value in running_statistics(norm)] for norm in norms]
    folded_weights = [module for module in network.modules() if isinstance(module, FoldedWeight)]
    try:
        for weight in folded_weights:  # what is folded in stays what the weights' step sizes were chosen for
            weight.held_factor = weight.factor().detach()
        # One image may leave one value per channel, which has no variance.
        reestimate_batch_norm_(network, (batch for batch in batches() if len(batch.images) > 1))
        yield
    finally:
        for weight in folded_weights:
            weight.held_factor = None
        for norm, statistics in zip(norms, kept, strict=True):
            if not squashed:
                for current, before in zip(running_statistics(norm), statistics, strict=True):
                    current.copy_(before)


def _activation_moments(
    qat: QatNetwork, observed_network: nn.Module, batches: Callable[[], Iterable[Batch]], settings: CalibrateSettings
) -> dict[str, Moments]:
    """What the quantizer of each activation point begins from."""
    ranged = {name for name, quantizer in qat.activations.items() if _begins_with_range(quantizer, qat.settings)}
    ranges: dict[str, Limits] = {}
    if ranged:
        specs = {f"{CONTAINER}.{name}": qat.plan.quantized_activations[name] for name in ranged}
        calibration = calibrate(
            observed_network,
            batches,
            specs,
            settings,
            split=settings.split,
            data_fingerprint="",
            gather=lambda own: [own],  # every rank has seen everything
        )
        ranges = {name: calibration.ranges[f"{CONTAINER}.{name}"] for name in ranged}
    unknown = torch.tensor(torch.nan)
    moments = {name: Moments(minimum=low, maximum=high, mean_abs=unknown, ranged=True) for name, (low, high) in ranges.items()}
    sizes = magnitudes(observed_network, batches()) if len(ranged) < len(qat.activations) else {}
    for name in qat.activations.keys() - ranged:
        mean, largest = sizes[name]
        moments[name] = Moments(minimum=-largest, maximum=largest, mean_abs=mean)
    return moments


def _on(moments: Moments, device: torch.device) -> Moments:
    """The moments on a device."""
    return replace(
        moments,
        minimum=moments.minimum.to(device),
        maximum=moments.maximum.to(device),
        mean_abs=moments.mean_abs.to(device),
    )


def _begins_with_range(quantizer: Quantizer, settings: QatSettings) -> bool:
    """True for the quantizer of an activation whose first values come from a calibrated range."""
    return quantizer.needs_range or settings.method.begins_with_range or settings.first_step == "calibrated"
