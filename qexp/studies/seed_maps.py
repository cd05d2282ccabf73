"""What document 002's linear map does to a weight, taken apart: scale, offset, truncation; and the copy that never ran.

q = a (w - mid - D/2),  a = (2^b - 1) / (max - min),  D = 1/a,  mid = (max + min) / 2

so that without `int()` the codes are an invertible affine map of the weights: nothing is quantized, and the width enters through
the scale a and half a step D/2 alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.nn.input_quant import to_int
from qexp.quant.encoding import decode, encode
from qexp.quant.linear import linear_quantize
from qexp.quant.ranges import min_max
from qexp.quant.schemes import quantize_

WeightMap = Callable[[Tensor, int], Tensor]


def raw(weight: Tensor, bits: int) -> Tensor:
    """The document's code: unrounded codes."""
    return linear_quantize(weight, bits)


def raw_int(weight: Tensor, bits: int) -> Tensor:
    """The document's prose: codes with their decimals cut off by `int()`."""
    spec = QuantSpec(scheme="linear_raw", bits=bits, rounding="trunc")
    return quantize_(torch.empty_like(weight), weight, spec)


def gain(weight: Tensor, bits: int) -> float:
    """The factor a of the map."""
    minimum, maximum = (float(end) for end in min_max(weight))
    return (2**bits - 1) / (maximum - minimum)


def scale_only(weight: Tensor, bits: int) -> Tensor:
    """Scaled: a w."""
    return (weight.double() * gain(weight, bits)).float()


def offset_only(weight: Tensor, bits: int) -> Tensor:
    """Shifted: w - mid - D/2."""
    minimum, maximum = (float(end) for end in min_max(weight))
    return (weight.double() - (minimum + maximum) / 2 - 0.5 / gain(weight, bits)).float()


def zero_point(weight: Tensor, bits: int) -> float:
    """Where the map sends zero, a (-mid - D/2) = -a mid - 1/2: an integer only by accident, and of a symmetric range never."""
    minimum, maximum = (float(end) for end in min_max(weight))
    return -gain(weight, bits) * (minimum + maximum) / 2 - 0.5


def zero_subtracted(weight: Tensor, bits: int) -> Tensor:
    """Rounded codes less the zero point as it is: a w and an error of half a step at most, without an offset."""
    return linear_quantize(weight, bits).round() - zero_point(weight, bits)


def rounded_zero_subtracted(weight: Tensor, bits: int) -> Tensor:
    """Rounded codes less the code nearest to zero, as an integer convolution would: up to half a step of offset stays."""
    return linear_quantize(weight, bits).round() - round(zero_point(weight, bits))


def rounded_zero_alone(weight: Tensor, bits: int) -> Tensor:
    """Unrounded codes less the code nearest to zero: that offset alone."""
    return linear_quantize(weight, bits) - round(zero_point(weight, bits))


def symmetric_codes(weight: Tensor, bits: int) -> Tensor:
    """Codes of the restricted symmetric grid, not mapped back."""
    return encode(weight, _symmetric(bits)).codes.float()


def symmetric(weight: Tensor, bits: int) -> Tensor:
    """The same, mapped back."""
    return decode(encode(weight, _symmetric(bits)))


def _symmetric(bits: int, scheme: str = "symmetric_restricted") -> QuantSpec:
    return QuantSpec(scheme=scheme, bits=bits)


def mapped(model: nn.Module, layers: Mapping[str, object] | list[str], change: WeightMap, bits: int) -> nn.Module:
    """A copy of the network with `change` applied to the weights of these layers."""
    network = copy.deepcopy(model)
    modules = dict(network.named_modules())
    for layer in layers:
        modules[layer].weight.copy_(change(modules[layer].weight, bits))
    return network


def mapped_everywhere(model: nn.Module, change: WeightMap, bits: int) -> tuple[nn.Module, int]:
    """A copy as the document's loop makes it, every key but `running` statistics, and the number of keys it could not map.

    Constant tensors and counters, which the document turns into NaN, stay as they are.
    """
    network, left = copy.deepcopy(model), 0
    for name, tensor in network.state_dict().items():
        if "running" in name or not tensor.numel():
            continue
        if tensor.is_floating_point() and bool((tensor != tensor.reshape(-1)[0]).any()):
            tensor.copy_(change(tensor, bits))
        else:
            left += 1
    return network, left


def folded_scale(model: nn.Module, norms: Mapping[str, str], bits: int, scheme: str) -> nn.Module:
    """Codes as weights, and their scale s in the batch norm behind them: mean -> mean/s, var -> var/s^2, eps -> eps/s^2."""
    network = copy.deepcopy(model)
    modules = dict(network.named_modules())
    for norm_name, layer_name in norms.items():
        norm, layer = modules[norm_name], modules[layer_name]
        encoded = encode(layer.weight, _symmetric(bits, scheme))
        scale = float(encoded.params["scale"])
        layer.weight.copy_(encoded.codes.float())
        if layer.bias is not None:
            layer.bias.div_(scale)
        norm.running_mean.div_(scale)
        norm.running_var.div_(scale * scale)
        norm.eps = norm.eps / (scale * scale)
    return network


def dequantized(model: nn.Module, norms: Mapping[str, str], bits: int, scheme: str) -> nn.Module:
    """The same codes mapped back, batch norm as it was."""
    return mapped(model, list(norms.values()), lambda weight, width: decode(encode(weight, _symmetric(width, scheme))), bits)


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch norms use the statistics of each batch, as in training mode, and keep none."""
    network = copy.deepcopy(model)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


class IntInput(nn.Module):
    """A network behind `input.int().float()`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits."""
        return self.network(to_int(images))


def never_executed(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The document's quantized copy as apex's O2 let it be made: it holds `state`, and runs the original in training mode.

    `amp.initialize` replaced `model.forward` by a closure on the instance; `copy.deepcopy` copies a function by reference, so
    that loading weights and `eval()` act on tensors and flags which the call never reaches.

    Source: apex/amp/_initialize.py, `patch_forward`.
    """
    original = copy.deepcopy(model)
    original.forward = _patched(original.forward)
    original.train()
    copied = copy.deepcopy(original)
    copied.load_state_dict(state)
    return copied.eval()


def _patched(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def new_forward(images: Tensor) -> Tensor:
        return forward(images)

    return new_forward


def refuses_constant(bits: int) -> bool:
    """True if the map of a constant tensor is an error, not NaN."""
    try:
        linear_quantize(torch.ones(4), bits)
    except UserError:
        return True
    return False
