"""The quantizer of a weight that batch norm is folded into."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from qexp.nn.channels import Layer, running_statistics
from qexp.qat.quantizers import BaseQuantizer
from qexp.quant.gradient_blocks import eager_cpu


class FoldedWeight(nn.Module):
    """A weight quantized as it will be once batch norm is folded into it: Q(W f) / f, f = gamma / sqrt(running_var + eps).

    The batch norm behind the layer goes on to normalize with the batch's statistics, and with its running ones once it is frozen,
    when both together are the folded layer.

    Args:
        quantizer: of the folded weight.
        layer: that holds the weight.
        norm: the batch norm behind it.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2; Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2.
    """

    def __init__(self, quantizer: BaseQuantizer, layer: Layer, norm: _BatchNorm) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.norms = (norm,)  # in a tuple: as a submodule it would be listed twice in the state dict
        # A weight is [out, in / groups, ...], that of a transposed convolution [in, out / groups, ...].
        self.groups, self.rows = norm.num_features, 1
        if isinstance(layer, _ConvTransposeNd):
            self.groups, self.rows = layer.groups, layer.in_channels // layer.groups
        self.kernel = (1,) * (layer.weight.dim() - 2)
        self.held_factor: Tensor | None = None  # f, while batch norm's statistics are taken anew

    def forward(self, x: Tensor) -> Tensor:
        """The weight that the layer uses; as it is where f is zero, which batch norm multiplies it by anyway."""
        factor = self.factor()
        zero = factor == 0
        if eager_cpu(x) and not bool(zero.any()):  # as nearly always: fewer tensors of its size, for the same bits
            return self.quantizer(x * factor) / factor
        # Divided by one there: the gradient of a division by zero would be NaN, though nothing takes its result.
        divisor = torch.where(zero, 1.0, factor)
        return torch.where(zero, x, self.quantizer(x * factor) / divisor)

    def factor(self) -> Tensor:
        """The factor f, as the weight broadcasts with it."""
        if self.held_factor is not None:
            return self.held_factor
        (norm,) = self.norms
        gain = torch.rsqrt(running_statistics(norm)[1] + norm.eps)
        gain = gain if norm.weight is None else gain * norm.weight
        spread = gain.reshape(self.groups, 1, -1).expand(-1, self.rows, -1)
        return spread.reshape(self.groups * self.rows, -1, *self.kernel)

    def folded(self, x: Tensor) -> Tensor:
        """W f."""
        return x * self.factor()
