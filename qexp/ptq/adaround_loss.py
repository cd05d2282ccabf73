"""What a change of one layer's weights does to its output, from images that are read once: the loss of AdaRound.

Legend: G groups, O and K output channels and weights of each output channel within a group, M output positions, x the rows [G, M,
K] of inputs that meet a kernel, r [G, M, O] what the unquantized weights already miss on quantized inputs, D [G, O, K] a change
of the weights.

Without an activation the loss E|r - D x|^2 is a quadratic form: x enters through E[x x'] and E[r x'] alone. `Quadratic` keeps
those, so that an iteration sees every position of every image, without noise, at the price of one product of D with a K x K
matrix. Rejected as the default: the paper's batches of images, whose every iteration convolves them forward and back, and whose
noise asks for more iterations. `Samples` keeps rows instead, for a loss behind a ReLU and for layers whose K x K matrix would be
too large.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.nn.channels import Layer, by_channel

QUADRATIC_ELEMENTS = 1 << 26  # of E[x x'] at most: 256 MiB of float32
SAMPLE_ELEMENTS = 1 << 25  # of kept rows at most: 128 MiB of float32
_CHUNK_ELEMENTS = 1 << 23  # of rows that are made at once: 32 MiB
SUPPORTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


def kernel_rows(layer: Layer, weight: Tensor) -> Tensor:
    """A tensor of the weight's shape as [G, O, K].

    Args:
        layer: whose weight has this shape.
        weight: as the layer stores it.
    """
    return by_channel(layer, weight).flatten(2)


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """What meets the kernel at each output position, [G, M, K]: rows @ kernel_rows' is the layer's output without its bias.

    Args:
        layer: one of `SUPPORTED`.
        x: its input.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d):
        x, kernel, dilation, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    patches = F.unfold(x, kernel, dilation=dilation, stride=stride)
    return patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def output_rows(layer: Layer, y: Tensor) -> Tensor:
    """The layer's output at each position, [G, M, O].

    Args:
        layer: one of `SUPPORTED`.
        y: its output.
    """
    if isinstance(layer, nn.Linear):
        return y.reshape(1, -1, y.shape[-1])
    return y.flatten(2).unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def images_at_once(layer: Layer, y: Tensor) -> int:
    """Of how many images the rows of inputs stay small.

    Args:
        layer: one of `SUPPORTED`.
        y: its output.
    """
    size = layer.weight[0].numel() * (1 if isinstance(layer, nn.Linear) else layer.groups)
    positions = max(y[0].numel() // (y.shape[-1] if isinstance(layer, nn.Linear) else y.shape[1]), 1)
    return max(1, _CHUNK_ELEMENTS // (size * positions))


def _parts(layer: Layer, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and outputs in parts of so many images that the rows of inputs stay small."""
    step = images_at_once(layer, y)
    yield from zip(x.split(step), y.split(step), strict=True)


def make_loss(layer: Layer, weight: Tensor, *, relu: bool, num_images: int, generator: torch.Generator) -> Quadratic | Samples:
    """The loss of a layer, empty: a quadratic form where there is no ReLU and its matrix is not too large.

    Args:
        layer: a layer of the quantized network, whose bias it takes.
        weight: its unquantized weight.
        relu: compare behind a ReLU.
        num_images: that will be added.
        generator: draws positions and batches, where samples are drawn.
    """
    groups, _, size = kernel_rows(layer, weight).shape
    if not relu and groups * size * size <= QUADRATIC_ELEMENTS:
        return Quadratic(layer, weight)
    return Samples(layer, weight, relu=relu, num_images=num_images, generator=generator)


class Quadratic:
    """E|r - D x|^2 over all positions, as tr(D E[xx'] D') - 2 tr(D E[x r']) + E[r'r].

    Args:
        layer: a layer of the quantized network, whose bias it takes.
        weight: its unquantized weight.
    """

    def __init__(self, layer: Layer, weight: Tensor) -> None:
        self.layer, self.weight = layer, kernel_rows(layer, weight.float())
        groups, outputs, size = self.weight.shape
        zeros = self.weight.new_zeros
        self.square = zeros(groups, size, size, dtype=torch.float64)
        self.cross = zeros(groups, outputs, size, dtype=torch.float64)
        self.rest = zeros(groups, outputs, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch: the layer's quantized input, and the output that the float network has."""
        for part, wanted in _parts(self.layer, x, y):
            rows = input_rows(self.layer, part)
            missed = output_rows(self.layer, wanted) - _base(self.layer, self.weight, rows)
            self.square += rows.transpose(1, 2) @ rows
            self.cross += missed.transpose(1, 2) @ rows
            self.rest += missed.square().sum(1, dtype=torch.float64)
            self.count += rows.shape[1]

    def close(self) -> None:
        """Turn sums into means; call it once, after the last batch."""
        self.square, self.cross = ((total / self.count).float() for total in (self.square, self.cross))
        self.rest /= self.count

    def gradient(self, change: Tensor) -> Tensor:
        """Of the loss by D, [G, O, K]."""
        return torch.baddbmm(self.cross, change, self.square, beta=-2, alpha=2)

    def error(self, change: Tensor) -> Tensor:
        """Mean squared error of each output channel, [G, O] float64."""
        product = change @ self.square - 2 * self.cross
        return (self.rest + (product.double() * change.double()).sum(-1)).clamp_(min=0)


class Samples:
    """E|f(y) - f(y - r + D x)|^2 over positions drawn from every image, f a ReLU or nothing; an iteration sees a batch of them.

    Args:
        layer: a layer of the quantized network, whose bias it takes.
        weight: its unquantized weight.
        relu: whether f is a ReLU.
        num_images: that will be added, to share the memory among.
        generator: draws positions and batches.
    """

    batch_size = 1024

    def __init__(self, layer: Layer, weight: Tensor, *, relu: bool, num_images: int, generator: torch.Generator) -> None:
        self.layer, self.weight, self.relu, self.generator = layer, kernel_rows(layer, weight.float()), relu, generator
        groups, outputs, size = self.weight.shape
        self.positions_per_image = max(1, SAMPLE_ELEMENTS // (groups * (size + 2 * outputs) * num_images))
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """As for `Quadratic`."""
        for part, wanted in _parts(self.layer, x, y):
            rows, wanted = input_rows(self.layer, part), output_rows(self.layer, wanted)
            positions = rows.shape[1] // len(part)
            drawn = torch.rand(len(part), positions, generator=self.generator).argsort(1)[:, : self.positions_per_image]
            index = (drawn + positions * torch.arange(len(part)).unsqueeze(1)).flatten().to(rows.device)
            rows = rows[:, index]
            self.kept.append((rows, _base(self.layer, self.weight, rows), wanted[:, index]))

    def close(self) -> None:
        """As for `Quadratic`."""
        self.rows, self.base, wanted = (torch.cat(parts, 1) for parts in zip(*self.kept, strict=True))
        self.wanted = F.relu(wanted) if self.relu else wanted
        self.kept = []

    def gradient(self, change: Tensor) -> Tensor:
        """Of the loss on a batch by D, [G, O, K]."""
        index = torch.randint(self.rows.shape[1], (self.batch_size,), generator=self.generator).to(self.rows.device)
        rows = self.rows[:, index]
        given = self.base[:, index].baddbmm(rows, change.transpose(1, 2))
        excess = (given.clamp(min=0) if self.relu else given) - self.wanted[:, index]
        if self.relu:
            excess *= given > 0
        return (2 / len(index)) * (excess.transpose(1, 2) @ rows)

    def error(self, change: Tensor) -> Tensor:
        """Mean squared error of each output channel over all kept positions, [G, O] float64."""
        given = self.base.baddbmm(self.rows, change.transpose(1, 2))
        return ((given.clamp_(min=0) if self.relu else given) - self.wanted).square_().mean(1, dtype=torch.float64)


def _base(layer: Layer, weight: Tensor, rows: Tensor) -> Tensor:
    """What the unquantized weights make of the rows, with the layer's bias, [G, M, O]."""
    base = rows @ weight.transpose(1, 2)
    return base if layer.bias is None else base + layer.bias.float().reshape(weight.shape[0], 1, -1)
