"""The weights of convolutions and linear layers by output and input channel, whatever the layer's layout and groups.

Legend: G groups, O I output and input channels of a group, K... kernel. A weight is seen as [G, O, I, K...]: a view of the
parameter, so that writing to it writes the layer. A transposed convolution stores [I, O, K...] for each group, a linear layer has
one group and no kernel.
"""

from __future__ import annotations

from math import prod
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Layer = _ConvNd | nn.Linear
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LAYERS = (*CONVS, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """True for torch's own convolutions and linear layers; a class derived from one may compute something else."""
    return type(module) in LAYERS


def as_layer(module: nn.Module) -> Layer:
    """The module, which the caller knows to be a convolution or linear layer."""
    assert isinstance(module, _ConvNd | nn.Linear), type(module)
    return module


def as_norm(module: nn.Module) -> _BatchNorm:
    """The module, which the caller knows to be a batch norm."""
    assert isinstance(module, _BatchNorm), type(module)
    return module


def running_statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a batch norm that keeps them."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Gamma and beta of a batch norm, [C] each: ones and zeros where it has none (`affine=False`)."""
    like = next((value for value in (norm.weight, norm.bias, norm.running_var) if value is not None), None)
    ones = torch.ones(norm.num_features) if like is None else torch.ones_like(like)
    return (ones if norm.weight is None else norm.weight), (torch.zeros_like(ones) if norm.bias is None else norm.bias)


def num_outputs(layer: Layer) -> int:
    """Output channels of a layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def num_inputs(layer: Layer) -> int:
    """Input channels of a layer."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def output_dim(layer: Layer) -> int:
    """The dimension of the layer's output that counts channels: 1, of a linear layer the last."""
    return -1 if isinstance(layer, nn.Linear) else 1


def by_channel(layer: Layer, weight: Tensor) -> Tensor:
    """A tensor of the weight's shape as [G, O, I, K...], a view.

    Args:
        layer: whose weight has this shape.
        weight: as the layer stores it.

    >>> by_channel(nn.ConvTranspose2d(4, 6, 3, groups=2), torch.zeros(4, 3, 3, 3)).shape
    torch.Size([2, 3, 2, 3, 3])
    """
    if isinstance(layer, nn.Linear):
        return weight.unsqueeze(0)
    grouped = weight.unflatten(0, (layer.groups, -1))
    return grouped.transpose(1, 2) if isinstance(layer, _ConvTransposeNd) else grouped


def scale_outputs_(layer: Layer, weight: Tensor, scale: Tensor) -> None:
    """Multiply what leads to output channel o by scale[o], in place.

    Args:
        layer: whose weight has this shape.
        weight: overwritten.
        scale: [out].
    """
    view = by_channel(layer, weight)
    view.mul_(scale.to(view).reshape(*view.shape[:2], *[1] * (view.dim() - 2)))


def scale_inputs_(layer: Layer, weight: Tensor, scale: Tensor) -> None:
    """Multiply what reads input channel i by scale[i], in place.

    Args:
        layer: whose weight has this shape.
        weight: overwritten.
        scale: [in].
    """
    view = by_channel(layer, weight)
    view.mul_(scale.to(view).reshape(view.shape[0], 1, view.shape[2], *[1] * (view.dim() - 3)))


def output_ranges(layer: Layer, size: Tensor) -> Tensor:
    """Largest of the weight's magnitudes that leads to each output channel, [out].

    Args:
        layer: whose weight has this shape.
        size: magnitudes of its weight.
    """
    view = by_channel(layer, size)
    return view.amax(dim=tuple(range(2, view.dim()))).flatten()


def input_ranges(layer: Layer, size: Tensor) -> Tensor:
    """Largest of the weight's magnitudes that reads each input channel, [in].

    Args:
        layer: whose weight has this shape.
        size: magnitudes of its weight.
    """
    view = by_channel(layer, size)
    return view.amax(dim=(1, *range(3, view.dim()))).flatten()


def mean_response(layer: Layer, weight: Tensor, mean: Tensor) -> Tensor:
    """What `weight` makes of an input with these channel means, on average over positions: sum_i mean[i] sum_k weight[o, i, k].

    Zero padding is left out of account, so it is exact without padding. Each output of a transposed convolution meets one in
    prod(stride) of the kernel's elements.

    Args:
        layer: whose weight has this shape.
        weight: as the layer's, float64 for exactness.
        mean: [in].

    Returns:
        [out], of weight's dtype.
    """
    view = by_channel(layer, weight)
    sums = view.flatten(3).sum(-1) if view.dim() > 3 else view
    response = torch.einsum("goi,gi->go", sums, mean.to(sums).reshape(view.shape[0], view.shape[2])).flatten()
    return response / prod(layer.stride) if isinstance(layer, _ConvTransposeNd) else response


def add_to_bias_(layer: Layer, shift: Tensor) -> None:
    """Add shift[o] to the layer's bias in place; a layer without one gets it.

    Args:
        layer: changed in place.
        shift: [out].
    """
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(num_outputs(layer), dtype=layer.weight.dtype, device=layer.weight.device))
        layer.bias.requires_grad_(layer.weight.requires_grad)
    with torch.no_grad():
        layer.bias.copy_(layer.bias.double() + shift.to(layer.bias.device).double())
