"""The absorption of high biases of a folded network, a data-free correction."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from qexp.base.text import Note
from qexp.nn.channels import add_to_bias_, as_layer, mean_response
from qexp.nn.fold import Changed, ChannelStatistics
from qexp.nn.layer_pairs import LayerPair, clip_of, find_layer_pairs
from qexp.ptq.equalization import joins_two_layers


@dataclass(frozen=True)
class AbsorbedPair:
    """What absorption did to two layers.

    Args:
        first: name of the layer whose biases fell.
        second: name of the layer whose biases took it up.
        shift: [C] float64, by how much they fell.
    """

    first: str
    second: str
    shift: Tensor


@dataclass(frozen=True)
class Absorbed(Changed):
    """A new network without high biases.

    Args:
        pairs: what was done, in order of execution.
        low: pairs without a bias that is high.
    """

    pairs: tuple[AbsorbedPair, ...]
    low: tuple[Note, ...]


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
    network, shifted, absorbed, notes = copy.deepcopy(model), dict(statistics), [], []
    low: list[Note] = []
    for pair in find_layer_pairs(model):
        if not joins_two_layers(pair, model) or pair.activation not in ("relu", "clip"):
            continue
        reason, both = _obstacle(pair, model, statistics, padded), f"{pair.source}, {pair.target}"
        if reason:
            notes.append(Note(both, f"no bias absorbed, {reason}"))
            continue
        before = shifted[pair.source]
        shift = (before.mean - 3 * before.std).clamp(min=0)
        if not shift.any():
            low.append(Note(both, "no bias is high"))
            continue
        first, second = (as_layer(network.get_submodule(name)) for name in (pair.source, pair.target))
        add_to_bias_(first, -shift)
        response = mean_response(second, second.weight.double(), shift.repeat_interleave(pair.features))
        add_to_bias_(second, response)
        shifted[pair.source] = replace(before, mean=before.mean - shift)
        if pair.activation == "clip":
            clip = clip_of(network, pair)
            clip.cap.copy_(clip.cap.double() - shift.reshape(clip.cap.shape))
        absorbed.append(AbsorbedPair(pair.source, pair.target, shift))
    return Absorbed(network, shifted, tuple(notes), tuple(absorbed), tuple(low))


def _obstacle(pair: LayerPair, model: nn.Module, statistics: Mapping[str, ChannelStatistics], padded: bool) -> str:
    """Why a pair is left alone; empty where it is not."""
    if pair.source not in statistics:
        return "its first layer had no batch norm that would tell its statistics"
    second = as_layer(model.get_submodule(pair.target))
    if isinstance(second, nn.Linear):
        return ""
    if isinstance(second, _ConvTransposeNd) and any(stride > 1 for stride in second.stride):
        return "its second layer is a strided transposed convolution"
    if not padded and second._reversed_padding_repeated_twice != [0] * (2 * len(second.stride)):
        return "its second layer pads with zeros"
    return ""
