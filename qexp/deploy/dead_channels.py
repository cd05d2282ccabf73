"""The steps of nearly dead channels, made large enough that the bias fits the int32 accumulator.

Folding a batch norm can leave a channel with weights of almost nothing beside a bias of ordinary size. In steps of the
accumulator, s_x s_w, that bias is beyond int32, and one such channel would keep the bias of its whole layer in float, and with it
the layer. Its s_w is doubled until the bias fits. What the channel loses by that is below 2^-22 of the bias for each product of
8-bit codes, about what float32 loses in the sum.

The place is here, where weights and the ranges of activations are both known and biases become steps of the accumulator: what is
simulated exactly, what the integer reference computes and what the file holds are one. Rejected: to do it while a copy is
evaluated, which would change the keys of all stored evaluations with activations for a difference that no number shows; to do it
per tensor, where the other channels would lose their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qexp.deploy.value_grids import value_quantizers
from qexp.deploy.weight_codes import MAX_BIAS, WeightCodes
from qexp.nn.graph import GraphNetwork
from qexp.nn.layer_calls import layer_calls


@torch.no_grad()
def floor_dead_channels(network: GraphNetwork, weights: Mapping[str, WeightCodes]) -> dict[str, WeightCodes]:
    """Double the step of a channel until |b| / (s_x s_w) is at most 2^30: s_w' = s_w 2^k, codes rounded to it.

    Args:
        network: calibrated; its layers are modules.
        weights: state-dict name -> codes; per channel, others stay as they are.
    """
    quantizers, parameters = value_quantizers(network), dict(network.named_parameters(remove_duplicate=False))
    floored = dict(weights)
    for call in layer_calls(network):
        quantizer, weight = quantizers.get(call.source), floored.get(call.weight)
        if call.bias not in parameters or quantizer is None or weight is None or weight.qparams.axis != 0:
            continue
        if quantizer.spec.dynamic or quantizer.axis is not None:
            continue
        least = torch.finfo(torch.float32).tiny  # a step of zero would hold nothing
        wanted = (parameters[call.bias].double().cpu().abs() / MAX_BIAS).clamp(min=least) / quantizer.scale.double().cpu()
        ratio = wanted / weight.qparams.scale.double().cpu()
        if bool((ratio > 1).any()):
            doublings = torch.log2(ratio * (1 + 1e-6)).ceil().clamp(min=0)  # the product of the steps is rounded to float32
            floored |= {name: _coarser(weight, doublings) for name, other in weights.items() if other is weights[call.weight]}
    return floored


def _coarser(weight: WeightCodes, doublings: Tensor) -> WeightCodes:
    """A weight on a grid of steps 2^k times as large, k for each channel."""
    qparams, shape = weight.qparams, (-1, *[1] * (weight.codes.dim() - 1))
    factor, zero_point = torch.exp2(doublings), qparams.zero_point.double().reshape(shape)
    codes = torch.round((weight.codes.double() - zero_point) / factor.reshape(shape)) + zero_point
    return WeightCodes(codes.to(torch.int32), replace(qparams, scale=(qparams.scale.double() * factor).float()))
