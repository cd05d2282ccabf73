"""Bias correction: what rounding added to the mean of a layer's output is taken from its bias.

Empirical, the shift is measured on images; analytic, it follows from the mean input that a batch norm promises. Both leave the
biases as the layer stores them: at 8 bits a bias would lose what the correction gained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.base.errors import UserError
from qexp.base.progress import track
from qexp.base.text import Note
from qexp.base.types import Batch
from qexp.nn.channels import LAYERS, Layer, add_to_bias_, as_layer, mean_response, output_dim, scale_and_shift
from qexp.nn.connectivity import RELU6_CAP
from qexp.nn.fold import ChannelStatistics
from qexp.nn.graph import evaluating
from qexp.nn.layer_pairs import LayerPair, clip_of, find_layer_pairs
from qexp.ptq.layer_inputs import layers_in_order, run_until


@dataclass(frozen=True)
class BiasCorrection:
    """What bias correction did.

    Args:
        shifts: layer name -> what was taken from its bias, [out] float64, in order of execution.
        notes: layers that were left alone, and why.
    """

    shifts: Mapping[str, Tensor]
    notes: tuple[Note, ...]


@torch.no_grad()
def correct_bias_(quantized: nn.Module, reference: nn.Module, batches: Iterable[Batch]) -> BiasCorrection:
    """Give every layer's output, channel by channel, the mean that it has in the float network.

    b -= E[y^] - E[y]

    Sequential: y^ is measured with all layers before corrected. The means are over all images and positions, so the correction is
    exact on these images. One batch takes one forward of each network; several take one forward up to the layer for each layer,
    and the memory of one batch.

    Args:
        quantized: overwritten in place; a layer without a bias gets one. May hold fake-quant modules.
        reference: the float network, with the same layers under the same names.
        batches: calibration images, on the networks' device.

    Raises:
        UserError: no images, or a layer of the quantized network that the reference does not have.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D.
    """
    images = [batch.images for batch in batches]
    if not images:
        raise UserError("correct.bias", "empirical", allowed="at least one batch of calibration images")
    with evaluating(quantized), evaluating(reference):
        layers, notes = layers_in_order(quantized, images[0][:1])
        _check_names(layers, reference)
        wanted = {name: _Mean() for name in layers}
        for batch_images in track(images, "batch"):
            run_until(reference, batch_images, layers, lambda name, layer, x, y: wanted[name].add(layer, y))
        # With one batch the corrected output goes on to the next layer at once.
        groups = [layers] if len(images) == 1 else [[name] for name in layers]
        shifts: dict[str, Tensor] = {}
        for group in track(groups, "layer"):
            shifts |= _correct_group(quantized, group, images, wanted)
    return BiasCorrection(shifts, notes)


def _check_names(layers: Sequence[str], reference: nn.Module) -> None:
    """Raise UserError where the reference lacks a layer."""
    known = dict(reference.named_modules())
    odd = [name for name in layers if name not in known]
    if odd:
        raise UserError("reference", ", ".join(odd[:5]), allowed="the layers of the quantized network")


class _Mean:
    """Mean of each channel over everything added."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def add(self, layer: Layer, y: Tensor) -> None:
        channel = output_dim(layer) % y.dim()
        others = [dim for dim in range(y.dim()) if dim != channel]
        self.total = self.total.to(y.device) + y.sum(others, dtype=torch.float64)
        self.count += y.numel() // y.shape[channel]

    def __sub__(self, other: _Mean) -> Tensor:
        return self.total / self.count - other.total / other.count


def _correct_group(
    model: nn.Module, group: Sequence[str], images: Sequence[Tensor], wanted: Mapping[str, _Mean]
) -> dict[str, Tensor]:
    """Correct layers that one run over the images can: one layer, or all where there is one batch."""
    measured = {name: _Mean() for name in group}
    shifts: dict[str, Tensor] = {}
    last = False

    def hook(name: str, layer: Layer, x: Tensor, y: Tensor) -> Tensor | None:
        measured[name].add(layer, y)
        if not last:
            return None
        shifts[name] = measured[name] - wanted[name]
        add_to_bias_(layer, -shifts[name])
        shape = [1] * y.dim()
        shape[output_dim(layer)] = -1
        return y - shifts[name].to(y.dtype).reshape(shape)

    for number, batch_images in enumerate(images):
        last = number == len(images) - 1
        run_until(model, batch_images, group, hook)
    return shifts


@torch.no_grad()
def correct_bias_analytic_(
    quantized: nn.Module, reference: nn.Module, statistics: Mapping[str, ChannelStatistics] | None = None
) -> BiasCorrection:
    """Take from every layer's bias the shift of its output's mean that the change of its weights makes of its mean input.

    b -= sum_i E[x_i] sum_k (W^ - W)[o, i, k],  E[x] = gamma phi(-beta/gamma) + beta (1 - Phi(-beta/gamma)) behind a ReLU

    x is taken to be Gaussian before its activation, with the mean and deviation that batch norm gave it: folded into the layer
    before, or standing right before. Layers whose input is something else (images, sums, concatenations) are left alone, with
    a note. Rounding in earlier layers, rounded activations and zero padding are left out of account.

    Args:
        quantized: overwritten in place; a layer without a bias gets one.
        reference: the float network, with the same layers under the same names.
        statistics: of outputs of layers that took a batch norm, as the reference has them: from `fold_batch_norm`, `equalize` or
            `absorb_high_biases`.

    Raises:
        UserError: a network in training mode, or one that torch.fx cannot trace.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2.1 and appendix C.
    """
    shifts, notes = {}, []
    pairs = {pair.target: pair for pair in find_layer_pairs(reference)}
    for name, module in reference.named_modules():
        if name not in pairs:
            continue
        pair = pairs[name]
        before = (statistics or {}).get(pair.source) or _statistics_of(reference.get_submodule(pair.source))
        if before is None or pair.max_pooled:
            why = "there is a max pooling before it" if pair.max_pooled else f"{pair.source} had no batch norm"
            notes.append(Note(name, f"bias not corrected, {why}"))
            continue
        layer, quantized_layer = as_layer(module), as_layer(quantized.get_submodule(name))
        mean = mean_input(pair, reference, before).repeat_interleave(pair.features)
        shifts[name] = mean_response(layer, quantized_layer.weight.double() - layer.weight.double(), mean)
        add_to_bias_(quantized_layer, -shifts[name])
    return BiasCorrection(shifts, (*notes, *_unpaired(reference, pairs)))


def _unpaired(reference: nn.Module, pairs: Mapping[str, LayerPair]) -> list[Note]:
    """A note for each layer whose input comes from no single layer or batch norm."""
    names = [name for name, module in reference.named_modules() if name not in pairs and type(module) in LAYERS]
    return [Note(name, "bias not corrected, its input is not the output of one layer or batch norm") for name in names]


def _statistics_of(source: nn.Module) -> ChannelStatistics | None:
    """What a batch norm that stands in the network says of its output; None for a layer."""
    if not isinstance(source, _BatchNorm):
        return None
    gamma, beta = scale_and_shift(source)
    return ChannelStatistics(beta.double(), gamma.double().abs())


def mean_input(pair: LayerPair, model: nn.Module, before: ChannelStatistics) -> Tensor:
    """Mean of each channel behind the activation of a pair, of a Gaussian before it; [C] float64.

    relu: m = std phi(mean/std) + mean Phi(mean/std);  a cap a takes away the same of (mean - a);  prelu: m + slope (mean - m)

    Args:
        pair: a layer and what feeds it.
        model: the network of the pair.
        before: statistics of the source's output.
    """
    mean, std = before.mean, before.std
    if pair.activation == "none":
        return mean
    rectified = _mean_above_zero(mean, std)
    if pair.activation == "prelu":
        assert pair.activation_module is not None
        prelu = model.get_submodule(pair.activation_module)
        assert isinstance(prelu, nn.PReLU)
        return rectified + prelu.weight.double() * (mean - rectified)
    if pair.activation == "relu":
        return rectified
    cap = RELU6_CAP if pair.activation == "relu6" else clip_of(model, pair).cap.double().flatten()
    return rectified - _mean_above_zero(mean - cap, std)


def _mean_above_zero(mean: Tensor, std: Tensor) -> Tensor:
    """E[max(x, 0)] of a Gaussian x."""
    ratio = mean / std.clamp(min=torch.finfo(torch.float64).tiny)
    density = torch.exp(-0.5 * ratio.square()) / (2 * torch.pi) ** 0.5
    return std * density + mean * torch.special.ndtr(ratio)
