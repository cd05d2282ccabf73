"""Cross-layer equalization of a folded network, a data-free correction.

A ReLU6 does not commute with a positive scale. The paper replaces it by a ReLU, which changes the function; here its module is
replaced by a `ChannelClip`, whose cap is 6 / s for each channel, and the function stays. A ReLU6 that is called as a function
leaves no module to replace, so its pair is left alone, with a note.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.text import Note
from qexp.nn.channels import (
    LAYERS,
    Layer,
    as_layer,
    input_ranges,
    num_outputs,
    output_ranges,
    scale_inputs_,
    scale_outputs_,
)
from qexp.nn.connectivity import RELU6_CAP, ChannelClip
from qexp.nn.fold import Changed, ChannelStatistics
from qexp.nn.layer_pairs import LayerPair, clip_of, find_layer_pairs

DEAD = 1e-8  # a channel whose weights are all below is left alone: its ratio of ranges means nothing


@dataclass(frozen=True)
class EqualizedPair:
    """What equalization did to two layers.

    Args:
        first: name of the layer whose outputs were scaled.
        second: name of the layer that reads them.
        activation: between them.
        scale: [C] float64; the first layer's output channels were divided by it and the second's inputs multiplied.
        dead: channels that were left alone.
    """

    first: str
    second: str
    activation: str
    scale: Tensor
    dead: int


@dataclass(frozen=True)
class Equalized(Changed):
    """A new network with equalized channels.

    Args:
        pairs: what was done, in order of execution.
    """

    pairs: tuple[EqualizedPair, ...]


@dataclass(frozen=True)
class Rescaled(Changed):
    """A new network of the same function with scaled channels.

    Args:
        num_pairs: whose channels were scaled.
    """

    num_pairs: int


@torch.no_grad()
def equalize(
    model: nn.Module,
    statistics: Mapping[str, ChannelStatistics] | None = None,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 200,
) -> Equalized:
    """Give the two weights on either side of a channel the same range, wherever a positive scale passes between them.

    s_i = sqrt(r1_i / r2_i),  W1[i] /= s_i,  b1_i /= s_i,  W2[:, i] *= s_i

    r1_i and r2_i are the largest magnitudes of W1's output channel i and W2's input channel i; both become sqrt(r1_i r2_i). Pairs
    are two layers with a ReLU, PReLU, ReLU6 module or nothing between them, and poolings, dropout or a flatten, where nothing
    else reads the value; a depthwise layer belongs to two. The pairs are gone through in order until all scales of a round lie
    within `tolerance` of 1. Scales are taken from float32 magnitudes and applied in float64; the function of the network stays,
    but for rounding.

    Args:
        model: in eval mode, batch norms folded (an unfolded one parts a pair); not changed.
        statistics: of layers' outputs, from `fold_batch_norm`.
        tolerance: on |s - 1|.
        max_iterations: rounds at most; a note says if they did not suffice.

    Raises:
        UserError: a network in training mode, or one that torch.fx cannot trace.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1 and appendix A.
    """
    network, (pairs, notes) = copy.deepcopy(model), _scalable(model)
    layers = {name: as_layer(network.get_submodule(name)) for pair in pairs for name in (pair.source, pair.target)}
    magnitudes = {name: layer.weight.float().abs() for name, layer in layers.items()}
    total = {pair: torch.ones(num_outputs(layers[pair.source]), dtype=torch.float64) for pair in pairs}
    iterations, moved = 0, bool(pairs)
    while moved and iterations < max_iterations:
        iterations, moved = iterations + 1, False
        for pair in pairs:
            scale = _equalize_pair_(pair, layers, magnitudes)
            total[pair] = total[pair].to(scale) * scale
            moved |= bool((scale - 1).abs().max() > tolerance)
    if moved:
        notes.append(f"equalization did not converge to {tolerance:g} in {max_iterations} rounds")
    scaled = dict(statistics or {})
    for pair in pairs:
        _apply_scale_(network, pair, total[pair], scaled)
    equalized = [_equalized_pair(pair, model, total[pair]) for pair in pairs]
    return Equalized(network, scaled, tuple(notes), tuple(equalized))


@torch.no_grad()
def rescale_channels(
    model: nn.Module, statistics: Mapping[str, ChannelStatistics] | None = None, *, log10: float, seed: int = 0
) -> Rescaled:
    """Scale the channels between every pair that equalization would take, which spoils ranges and leaves the function.

    s_i = 10^U(-r, r),  W1[i] /= s_i,  b1_i /= s_i,  W2[:, i] *= s_i

    Random channels stand for the networks whose batch norms leave them so uneven that one range for a tensor fits none.

    Args:
        model: in eval mode, batch norms folded; not changed.
        statistics: of layers' outputs, from `fold_batch_norm`.
        log10: r.
        seed: of the factors.

    Raises:
        UserError: a network in training mode, or one that torch.fx cannot trace.
    """
    network, (pairs, notes) = copy.deepcopy(model), _scalable(model)
    generator, scaled = torch.Generator().manual_seed(seed), dict(statistics or {})
    for pair in pairs:
        first = as_layer(network.get_submodule(pair.source))
        drawn = torch.rand(num_outputs(first), dtype=torch.float64, generator=generator)
        _apply_scale_(network, pair, (10 ** (log10 * (2 * drawn - 1))).to(first.weight.device), scaled)
    return Rescaled(network, scaled, tuple(notes), len(pairs))


def _scalable(model: nn.Module) -> tuple[list[LayerPair], list[str]]:
    """The pairs between which a positive scale passes, and why others are left out."""
    pairs: list[LayerPair] = []
    notes: list[str] = []
    for pair in find_layer_pairs(model):
        if joins_two_layers(pair, model):
            if pair.activation == "relu6" and pair.activation_module is None:
                notes.append(
                    Note(f"{pair.source}, {pair.target}", "not equalized, the ReLU6 between them is no module of its own")
                )
            else:
                pairs.append(pair)
    return pairs, notes


def joins_two_layers(pair: LayerPair, model: nn.Module) -> bool:
    """True for two layers between which nothing else reads."""
    return pair.exclusive and type(model.get_submodule(pair.source)) in LAYERS


def _equalize_pair_(pair: LayerPair, layers: Mapping[str, Layer], magnitudes: Mapping[str, Tensor]) -> Tensor:
    """One step on the magnitudes of a pair's weights, in place; its scale [C]."""
    first, second = layers[pair.source], layers[pair.target]
    above, below = _ranges(pair, first, second, magnitudes[pair.source], magnitudes[pair.target])
    alive = (above >= DEAD) & (below >= DEAD)
    scale = torch.where(alive, torch.sqrt(above.double() / torch.where(alive, below, 1.0)), 1.0)
    scale_outputs_(first, magnitudes[pair.source], 1 / scale)
    scale_inputs_(second, magnitudes[pair.target], scale.repeat_interleave(pair.features))
    return scale


def _ranges(pair: LayerPair, first: Layer, second: Layer, weight: Tensor, reader: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges of each channel on both sides, [C], of weights' magnitudes."""
    return output_ranges(first, weight), input_ranges(second, reader).reshape(-1, pair.features).amax(1)


def _equalized_pair(pair: LayerPair, before: nn.Module, scale: Tensor) -> EqualizedPair:
    """The record of a pair."""
    first, second = (as_layer(before.get_submodule(name)) for name in (pair.source, pair.target))
    above, below = _ranges(pair, first, second, first.weight.abs(), second.weight.abs())
    dead = int(((above < DEAD) | (below < DEAD)).sum())
    return EqualizedPair(pair.source, pair.target, pair.activation, scale, dead)


def _apply_scale_(network: nn.Module, pair: LayerPair, scale: Tensor, statistics: dict[str, ChannelStatistics]) -> None:
    """Apply a pair's scale to its weights, and divide by it what lies between: bias, statistics, the cap of the activation."""
    first, second = (as_layer(network.get_submodule(name)) for name in (pair.source, pair.target))
    for layer, apply, factor in (
        (first, scale_outputs_, 1 / scale),
        (second, scale_inputs_, scale.repeat_interleave(pair.features)),
    ):
        weight = layer.weight.double()
        apply(layer, weight, factor)
        layer.weight.copy_(weight)
    if first.bias is not None:
        first.bias.copy_(first.bias.double() / scale)
    before = statistics.get(pair.source)
    if before is not None:
        statistics[pair.source] = ChannelStatistics(before.mean / scale, before.std / scale)
    if pair.activation == "relu6":
        assert pair.activation_module is not None
        parent, _, leaf = pair.activation_module.rpartition(".")
        spatial = [1] * (first.weight.dim() - 2)  # none behind a linear layer
        cap = (RELU6_CAP / scale).to(first.weight).reshape(-1, *spatial)
        setattr(network.get_submodule(parent), leaf, ChannelClip(cap).train(network.training))
    elif pair.activation == "clip":
        clip = clip_of(network, pair)
        clip.cap.copy_(clip.cap.double() / scale.reshape(clip.cap.shape))
