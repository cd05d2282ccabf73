"""Stacks of 1x1 convolutions in fixed point: as document 000 writes it, normalized layer by layer, and in integers alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.base.types import QuantSpec
from qexp.quant.encoding import Encoded, encode
from qexp.quant.schemes import quantize_

BITS = 8
FRACTION = BITS - 1  # Q1.7: 128 steps to one
IN_CHANNELS, CHANNELS = 3, 10
Network = TypeVar("Network", bound=nn.Module)


def without_the_call(model: nn.Module) -> nn.Module:
    """The document's `quantization`, letter by letter; raises TypeError, as `model.state_dict[key]` lacks the call."""
    keys = model.state_dict().keys()
    for key in keys:
        model.state_dict()[key][:] = torch.div(
            torch.clamp(model.state_dict[key] * 128, min=-128, max=127),  # type: ignore[index]  # the document's mistake
            len(keys),
            rounding_mode="floor",
        )
    return model


def as_written(model: Network) -> Network:
    """A copy by the document's `quantization`, with the call: floor(clip(128 w, -128, 127) / number of tensors)."""
    network = copy.deepcopy(model)
    state = network.state_dict()
    for tensor in state.values():
        tensor.copy_(torch.div(torch.clamp(tensor * 128, min=-128, max=127), len(state), rounding_mode="floor"))
    return network


def closed_factor(model: nn.Module) -> float:
    """What the document searches for: 128 / number of tensors."""
    return 128 / len(model.state_dict())


def stack(num_layers: int, *, relu: bool, bias: bool = True, seed: int = 0) -> nn.Sequential:
    """So many 1x1 convolutions from torch's initialization, each followed by a ReLU or by nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inputs = [IN_CHANNELS] + [CHANNELS] * (num_layers - 1)
        layers = [layer for count in inputs for layer in (nn.Conv2d(count, CHANNELS, 1, bias=bias), *([nn.ReLU()] * relu))]
    return nn.Sequential(*layers).requires_grad_(False)


def normalized(model: nn.Sequential, image: Tensor) -> Tensor:
    """The document's codes, each layer's output divided by the factor before it goes on."""
    factor = closed_factor(model)
    for layer in as_written(model):
        image = layer(image) / factor if isinstance(layer, nn.Conv2d) else layer(image)
    return image


def rounded(model: nn.Sequential, rounding: str) -> nn.Sequential:
    """A copy with all tensors in Q1.7."""
    network = copy.deepcopy(model)
    for tensor in network.state_dict().values():
        quantize_(tensor, tensor.clone(), QuantSpec(scheme="fixed_point", bits=BITS, rounding=rounding))
    return network


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution in integers.

    Args:
        weight: codes in Q1.7.
        bias: [C] int64, codes of the accumulator's step 2^-(7 + fraction of its input).
        relu: follows.
    """

    weight: Encoded
    bias: Tensor
    relu: bool


@dataclass(frozen=True)
class IntegerRun:
    """The result of running a network in integers.

    Args:
        output: float32, dequantized.
        exact: every accumulator equals that of a float32 convolution on the codes.
        packed: stored weight bytes give the codes back.
        num_bytes: of weights at 8 bits and biases at 32.
    """

    output: Tensor
    exact: bool
    packed: bool
    num_bytes: int


def run_integers(model: nn.Sequential, image: Tensor) -> IntegerRun:
    """Codes in, codes on: uint8 image Q0.8, int8 weights Q1.7, wide accumulators, and between layers a shift to 8 bits.

    code' = (acc + 2^(shift-1)) >> shift, the shift from the accumulator's largest magnitude on this image
    """
    codes, fraction = (image * 256).round().clamp(0, 255).long(), BITS
    exact = packed = True
    num_bytes = 0
    layers = list(model)
    for position, layer in enumerate(layers):
        if not isinstance(layer, nn.Conv2d):
            continue
        relu = position + 1 < len(layers) and isinstance(layers[position + 1], nn.ReLU)
        integer_layer = _integer_layer(layer, fraction, relu)
        weight, bias = integer_layer.weight, integer_layer.bias
        sums = _accumulate(integer_layer, codes)
        float_sums = F.conv2d(codes.float(), weight.codes.float(), bias.float())
        exact &= torch.equal(float_sums, sums.float()) and float(float_sums.abs().max()) < 2**24
        stored = weight.pack()
        packed &= torch.equal(weight.unpack(stored).codes, weight.codes)
        num_bytes += stored.numel() + 4 * bias.numel()
        fraction += FRACTION
        sums = sums.clamp(min=0) if relu else sums
        if position < len(layers) - 1 - relu:
            codes, fraction = _shifted(sums, fraction, signed=not relu)
    return IntegerRun(sums.float() / 2.0**fraction, exact, packed, num_bytes)


def _integer_layer(layer: nn.Conv2d, fraction: int, relu: bool) -> IntegerLayer:
    assert layer.bias is not None, "layers with a bias"
    weight = encode(layer.weight, QuantSpec(scheme="fixed_point", bits=BITS))
    return IntegerLayer(weight, (layer.bias.double() * 2.0 ** (FRACTION + fraction)).round().long(), relu)


def _accumulate(layer: IntegerLayer, codes: Tensor) -> Tensor:
    """[1, C, H, W] int64, without a floating-point operation."""
    sums = layer.weight.codes.long().flatten(1) @ codes[0].flatten(1) + layer.bias[:, None]
    return sums.view(1, -1, *codes.shape[2:])


def _shifted(sums: Tensor, fraction: int, *, signed: bool) -> tuple[Tensor, int]:
    """The accumulators at 8 bits, and how many of them are fraction."""
    whole = math.ceil(math.log2(max(int(sums.abs().max()), 1) + 1)) - fraction  # bits before the point
    kept = BITS - signed - whole
    shift = fraction - kept
    low, high = (-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1) if signed else (0, 2**BITS - 1)
    moved = (sums + (1 << (shift - 1))) >> shift if shift > 0 else sums << -shift
    return moved.clamp(low, high), kept
