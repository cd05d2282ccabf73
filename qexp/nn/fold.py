"""Batch norm folded into the layer before it, so that what is quantized is what an integer network multiplies by."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.base.text import Note
from qexp.nn.channels import (
    Layer,
    add_to_bias_,
    as_layer,
    as_norm,
    num_outputs,
    running_statistics,
    scale_and_shift,
    scale_outputs_,
)
from qexp.nn.compare import check_same, outputs_on_noise
from qexp.nn.connectivity import Connectivity, source_of


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel of a layer's output over the training data, as its batch norm knew them.

    Args:
        mean: [C] float64, batch norm's shift beta.
        std: [C] float64, its scale gamma, whose sign says nothing.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Changed:
    """A new network in eval mode, made from another, and what is known of it.

    Args:
        model: the new network.
        statistics: name of a layer that took a batch norm -> its output's statistics, which later corrections read.
        notes: what was left alone, and why.
    """

    model: nn.Module
    statistics: Mapping[str, ChannelStatistics]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Folded(Changed):
    """A network without the batch norms that could be folded.

    A folded batch norm is an `nn.Identity`, its layer has a bias, all other names are as they were.

    Args:
        layers: name of each folded batch norm -> name of the layer that took it.
    """

    notes: tuple[Note, ...]
    layers: Mapping[str, str]


def fold_batch_norm(model: nn.Module, example: Tensor | None = None) -> Folded:
    """Fold every batch norm whose input is the output of one convolution or linear layer that nothing else reads.

    W'[o] = W[o] gamma[o] / sqrt(var[o] + eps),  b'[o] = beta[o] + (b[o] - mean[o]) gamma[o] / sqrt(var[o] + eps)

    Computed in float64, stored in the layer's dtype. The function of the network in eval mode stays, but for rounding; its
    training mode is another afterwards. A linear layer's output is taken to be [N, C].

    Args:
        model: in eval mode; not changed.
        example: [N, C, H, W] images, for whose shape the folded network is compared with the original; None where it never runs.

    Raises:
        UserError: a network in training mode, one that torch.fx cannot trace, or one that computes something else when folded.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> fold_batch_norm(net).layers
    {'1': '0'}
    """
    connectivity = Connectivity(model)
    norms = {str(node.target): node for node in connectivity.nodes if connectivity.kind(node) == "norm"}
    folded = copy.deepcopy(model)
    modules = dict(folded.named_modules(remove_duplicate=False))
    layers: dict[str, str] = {}
    statistics: dict[str, ChannelStatistics] = {}
    notes = []
    for name, module in connectivity.modules.items():
        if not isinstance(module, _BatchNorm):
            continue
        reason = _obstacle(connectivity, norms[name]) if name in norms else "the network does not execute it, or not as a module"
        if reason:
            notes.append(Note(name, f"not folded, {reason}"))
            continue
        layers[name] = str(source_of(norms[name]).target)
        statistics[layers[name]] = _fold_into_layer_(as_layer(modules[layers[name]]), module)
    for name in layers:
        parent, _, leaf = name.rpartition(".")
        identity = nn.Identity()
        for child_name, child in modules[name].named_children():  # an activation, of norms that had one within
            identity.add_module(child_name, child)
        setattr(modules[parent], leaf, identity.eval())
    if example is not None and layers:
        check_same(outputs_on_noise(model, example), outputs_on_noise(folded, example), "correct.fold_bn")
    return Folded(folded, statistics, tuple(notes), layers)


def _obstacle(connectivity: Connectivity, node: fx.Node) -> str:
    """Why a batch norm cannot be folded; empty where it can."""
    norm, before = as_norm(connectivity.module(node)), source_of(node)
    if norm.running_mean is None:
        return "it keeps no running statistics"
    if connectivity.kind(before) != "layer":
        return "its input is not the output of a convolution or linear layer"
    if len(connectivity.readers(before)) > 1:
        return f"something else reads the output of {before.target}"
    if not (connectivity.single(node) and connectivity.single(before)):
        return f"it or {before.target} is called more than once or shares parameters"
    if any(module._forward_hooks or module._forward_pre_hooks for module in (norm, connectivity.module(before))):
        return f"a hook of it or of {before.target} may change what they compute"
    if num_outputs(as_layer(connectivity.module(before))) != norm.num_features:
        return f"it does not count the channels of {before.target}"
    return ""


@torch.no_grad()
def _fold_into_layer_(layer: Layer, norm: _BatchNorm) -> ChannelStatistics:
    """Fold `norm` into `layer`, in place."""
    mean, var = (value.double() for value in running_statistics(norm))
    gamma, beta = (value.double() for value in scale_and_shift(norm))
    gain = gamma / torch.sqrt(var + norm.eps)
    weight = layer.weight.double()
    scale_outputs_(layer, weight, gain)
    layer.weight.copy_(weight)
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    if layer.bias is not None:
        layer.bias.zero_()
    add_to_bias_(layer, beta + (bias - mean) * gain)
    return ChannelStatistics(beta.clone(), gamma.abs())
