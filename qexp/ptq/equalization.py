"""Data-free corrections of a folded network: cross-layer equalization, and the absorption of high biases.

A ReLU6 does not commute with a positive scale. The paper replaces it by a ReLU, which changes the function; here its module is
replaced by a `ChannelClip`, whose cap is 6 / s for each channel, and the function stays. A ReLU6 that is called as a function
leaves no module to replace, so its pair is left alone, with a note.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qexp.nn.channels import (
    LAYERS,
    TRANSPOSED,
    add_to_bias_,
    input_ranges,
    mean_response,
    num_outputs,
    output_ranges,
    scale_inputs_,
    scale_outputs_,
)
from qexp.nn.fold import ChannelStatistics
from qexp.nn.layer_pairs import RELU6_CAP, ChannelClip, Link, find_layer_pairs

DEAD = 1e-8  # a channel whose weights are all below is left alone: its ratio of ranges means nothing


@dataclass(frozen=True)
class EqualizedPair:
    """What equalization did to two layers.

    Args:
        first, second: layer names.
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
class Equalized:
    """A new network with equalized channels, what was done, statistics of the scaled outputs, and what was left alone."""

    model: nn.Module
    pairs: tuple[EqualizedPair, ...]
    statistics: Mapping[str, ChannelStatistics]
    num_iterations: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Rescaled:
    """A new network of the same function, statistics of its scaled outputs, and what was left alone."""

    model: nn.Module
    statistics: Mapping[str, ChannelStatistics]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class AbsorbedPair:
    """What absorption did: the first layer's biases fell by `shift` [C], float64, and the second's took it up."""

    first: str
    second: str
    shift: Tensor


@dataclass(frozen=True)
class Absorbed:
    """A new network without high biases, what was done, statistics of the shifted outputs, and what was left alone."""

    model: nn.Module
    pairs: tuple[AbsorbedPair, ...]
    statistics: Mapping[str, ChannelStatistics]
    notes: tuple[str, ...]


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
    network, (links, notes) = copy.deepcopy(model), _scalable(model)
    modules = dict(network.named_modules())
    sizes = {name: modules[name].weight.float().abs() for link in links for name in (link.source, link.target)}
    total = {link: torch.ones(num_outputs(modules[link.source]), dtype=torch.float64) for link in links}
    iterations, moved = 0, bool(links)
    while moved and iterations < max_iterations:
        iterations, moved = iterations + 1, False
        for link in links:
            scale = _equalize_pair(link, modules, sizes)
            total[link] = total[link].to(scale) * scale
            moved |= bool((scale - 1).abs().max() > tolerance)
    if moved:
        notes.append(f"equalization did not converge to {tolerance:g} in {max_iterations} rounds")
    scaled = dict(statistics or {})
    for link in links:
        _apply_scale(network, link, total[link], scaled)
    pairs = [_pair(link, model, total[link]) for link in links]
    return Equalized(network, tuple(pairs), scaled, iterations, tuple(notes))


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
    network, (links, notes) = copy.deepcopy(model), _scalable(model)
    generator, scaled = torch.Generator().manual_seed(seed), dict(statistics or {})
    for link in links:
        first = network.get_submodule(link.source)
        drawn = torch.rand(num_outputs(first), dtype=torch.float64, generator=generator)
        _apply_scale(network, link, (10 ** (log10 * (2 * drawn - 1))).to(first.weight.device), scaled)
    return Rescaled(network, scaled, tuple(notes))


def _scalable(model: nn.Module) -> tuple[list[Link], list[str]]:
    """The pairs between which a positive scale passes, and why others are left out."""
    links, notes = [], []
    for link in find_layer_pairs(model):
        if _usable(link, model):
            if link.activation == "relu6" and link.activation_module is None:
                notes.append(f"{link.source}, {link.target}: not equalized, the ReLU6 between them is no module of its own")
            else:
                links.append(link)
    return links, notes


def _usable(link: Link, model: nn.Module) -> bool:
    """True for two layers that nothing else reads between."""
    return link.exclusive and type(model.get_submodule(link.source)) in LAYERS


def _equalize_pair(link: Link, modules: Mapping[str, nn.Module], sizes: Mapping[str, Tensor]) -> Tensor:
    """One step on the magnitudes of a pair's weights, in place; its scale [C]."""
    first, second = modules[link.source], modules[link.target]
    above, below = _ranges(link, first, second, sizes[link.source], sizes[link.target])
    alive = (above >= DEAD) & (below >= DEAD)
    scale = torch.where(alive, torch.sqrt(above.double() / torch.where(alive, below, 1.0)), 1.0)
    scale_outputs_(first, sizes[link.source], 1 / scale)
    scale_inputs_(second, sizes[link.target], scale.repeat_interleave(link.features))
    return scale


def _ranges(link: Link, first: nn.Module, second: nn.Module, weight: Tensor, reader: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges of each channel on both sides, [C], of weights' magnitudes."""
    return output_ranges(first, weight), input_ranges(second, reader).reshape(-1, link.features).amax(1)


def _pair(link: Link, before: nn.Module, scale: Tensor) -> EqualizedPair:
    """The record of a pair."""
    first, second = before.get_submodule(link.source), before.get_submodule(link.target)
    above, below = _ranges(link, first, second, first.weight.abs(), second.weight.abs())
    dead = int(((above < DEAD) | (below < DEAD)).sum())
    return EqualizedPair(link.source, link.target, link.activation, scale, dead)


def _apply_scale(network: nn.Module, link: Link, scale: Tensor, statistics: dict[str, ChannelStatistics]) -> None:
    """Apply a pair's scale to its weights, and divide by it what lies between: bias, statistics, the cap of the activation."""
    first, second = network.get_submodule(link.source), network.get_submodule(link.target)
    for layer, apply, factor in (
        (first, scale_outputs_, 1 / scale),
        (second, scale_inputs_, scale.repeat_interleave(link.features)),
    ):
        weight = layer.weight.double()
        apply(layer, weight, factor)
        layer.weight.copy_(weight)
    if first.bias is not None:
        first.bias.copy_(first.bias.double() / scale)
    known = statistics.get(link.source)
    if known is not None:
        statistics[link.source] = ChannelStatistics(known.mean / scale, known.std / scale)
    if link.activation == "relu6":
        parent, _, leaf = link.activation_module.rpartition(".")
        spatial = [1] * (first.weight.dim() - 2)  # none behind a linear layer
        cap = (RELU6_CAP / scale).to(first.weight).reshape(-1, *spatial)
        setattr(network.get_submodule(parent), leaf, ChannelClip(cap).train(network.training))
    elif link.activation == "clip":
        clip = network.get_submodule(link.activation_module)
        clip.cap.copy_(clip.cap.double() / scale.reshape(clip.cap.shape))


@torch.no_grad()
def absorb_high_biases(model: nn.Module, statistics: Mapping[str, ChannelStatistics], *, padded: bool = True) -> Absorbed:
    """Move the part of a layer's bias that its ReLU almost never cuts into the next layer, where it costs no activation range.

    c_i = max(0, beta_i - 3 |gamma_i|),  b1_i -= c_i,  b2 += W2 c

    Were the outputs Gaussian, 99.87 % of them would exceed c, and for those ReLU(x - c) + c = ReLU(x): the function nearly stays.
    Where the second layer pads with zeros its outputs at the border change too, since they now see -c there in place of 0.

    Args:
        model: in eval mode, batch norms folded, equalized if it is to be; not changed.
        statistics: of the layers' outputs, from `fold_batch_norm` or `equalize`.
        padded: take pairs whose second layer pads, as the paper does; False leaves those out.

    Raises:
        UserError: a network in training mode, or one that torch.fx cannot trace.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3.
    """
    network, shifted, pairs, notes = copy.deepcopy(model), dict(statistics), [], []
    for link in find_layer_pairs(model):
        if not _usable(link, model) or link.activation not in ("relu", "clip"):
            continue
        reason = _no_absorption(link, model, statistics, padded)
        if reason:
            notes.append(f"{link.source}, {link.target}: no bias absorbed, {reason}")
            continue
        known = shifted[link.source]
        shift = (known.mean - 3 * known.std).clamp(min=0)
        if not shift.any():
            continue
        second = network.get_submodule(link.target)
        add_to_bias_(network.get_submodule(link.source), -shift)
        taken_up = mean_response(second, second.weight.double(), shift.repeat_interleave(link.features))
        add_to_bias_(second, taken_up)
        shifted[link.source] = replace(known, mean=known.mean - shift)
        if link.activation == "clip":
            clip = network.get_submodule(link.activation_module)
            clip.cap.copy_(clip.cap.double() - shift.reshape(clip.cap.shape))
        pairs.append(AbsorbedPair(link.source, link.target, shift))
    return Absorbed(network, tuple(pairs), shifted, tuple(notes))


def _no_absorption(link: Link, model: nn.Module, statistics: Mapping[str, ChannelStatistics], padded: bool) -> str:
    """Why a pair is left alone; empty where it is not."""
    if link.source not in statistics:
        return "its first layer had no batch norm that would tell its statistics"
    second = model.get_submodule(link.target)
    if type(second) in TRANSPOSED and any(stride > 1 for stride in second.stride):
        return "its second layer is a strided transposed convolution"
    if not padded and type(second) is not nn.Linear and second._reversed_padding_repeated_twice != [0] * (2 * len(second.stride)):
        return "its second layer pads with zeros"
    return ""
