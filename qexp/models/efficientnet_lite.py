"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and with ReLU6, made to be quantized.

Padding is TensorFlow's "same", which puts the odd row and column of a stride of 2 at the end. It depends on the size of the
images, so the network is made for one. Rejected: padding worked out in `forward`, which no graph of fixed operators can hold.

Source: Tan and Le 2019, arXiv:1905.11946, table 1; Google's `efficientnet_lite_builder.py` for what Lite changes: stem and head
keep their width, first and last stage their depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

_EPSILON, _MOMENTUM = 1e-3, 0.01  # of batch norm, as TensorFlow trained it
_STEM, _HEAD = 32, 1280
# of each stage: repeats, kernel size, stride of the first block, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# the published files' names -> ours
_NAMES = (
    (r"^_conv_stem\.", "stem.conv."), (r"^_bn0\.", "stem.bn."), (r"^_conv_head\.", "head.conv."), (r"^_bn1\.", "head.bn."),
    (r"^_fc\.", "fc."), (r"^_blocks\.", "blocks."), (r"\._expand_conv\.", ".expand.conv."), (r"\._bn0\.", ".expand.bn."),
    (r"\._depthwise_conv\.", ".depthwise.conv."), (r"\._bn1\.", ".depthwise.bn."), (r"\._project_conv\.", ".project.conv."),
    (r"\._bn2\.", ".project.bn."),
)  # fmt: skip


class ConvBatchNorm(nn.Module):
    """relu6(bn(conv(pad(x)))), "same" padding for one size of image.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel_size: square.
        stride: both ways.
        groups: `in_channels` for a depthwise convolution.
        size: (H, W) of the input.
        relu: False leaves the ReLU6 out.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        *,
        size: tuple[int, int],
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        (top, bottom), (left, right) = (same_padding(length, kernel_size, stride) for length in size)
        even = top == bottom and left == right
        self.pad = nn.Identity() if even else nn.ZeroPad2d((left, right, top, bottom))
        self.conv = nn.Conv2d(
            in_channels, channels, kernel_size, stride, padding=(top, left) if even else 0, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels, _EPSILON, _MOMENTUM)
        self.relu = nn.ReLU6() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]."""
        return self.relu(self.bn(self.conv(self.pad(x))))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1 without ReLU; the input is added where shapes agree.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel_size: of the depthwise convolution.
        stride: of it.
        expansion: 1 leaves the first convolution out.
        size: (H, W) of the input.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, stride: int, expansion: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = nn.Identity() if expansion == 1 else ConvBatchNorm(in_channels, wide, 1, size=size)
        self.depthwise = ConvBatchNorm(wide, wide, kernel_size, stride=stride, groups=wide, size=size)
        self.project = ConvBatchNorm(wide, channels, 1, size=size, relu=False)
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]."""
        out = self.project(self.depthwise(self.expand(x)))
        return out + x if self.adds else out


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite.

    Args:
        width: factor of channels.
        depth: factor of repeats.
        dropout: of training, before the classifier.
        num_classes: outputs.
        in_channels: of the images.
        image_size: (H, W) of the images.
    """

    def __init__(
        self,
        width: float,
        depth: float,
        dropout: float,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.stem = ConvBatchNorm(in_channels, _STEM, 3, stride=2, size=image_size)
        size, channels = _halved(image_size), _STEM
        blocks: list[nn.Module] = []
        for number, (repeats, kernel_size, stride, expansion, base) in enumerate(_STAGES):
            wanted = round_channels(base * width)
            count = repeats if number in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
            for place in range(count):
                step = stride if place == 0 else 1
                blocks.append(InvertedResidual(channels, wanted, kernel_size, step, expansion, size))
                size, channels = _halved(size) if step == 2 else size, wanted
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvBatchNorm(channels, _HEAD, 1, size=size)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(_HEAD, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, num_classes]."""
        return self.fc(self.dropout(torch.flatten(self.pool(self.head(self.blocks(self.stem(x)))), 1)))


efficientnet_lite0 = partial(EfficientNetLite, 1.0, 1.0, 0.2)
efficientnet_lite1 = partial(EfficientNetLite, 1.0, 1.1, 0.2)
efficientnet_lite2 = partial(EfficientNetLite, 1.1, 1.2, 0.3)


def same_padding(length: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Rows before and after, so that ceil(length / stride) come out: TensorFlow's "same".

    >>> same_padding(224, 3, 2), same_padding(56, 5, 2), same_padding(65, 5, 2), same_padding(7, 5, 1)
    ((0, 1), (1, 2), (2, 2), (2, 2))
    """
    total = max((math.ceil(length / stride) - 1) * stride + kernel_size - length, 0)
    return total // 2, total - total // 2


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and not below 0.9 of `channels`.

    >>> round_channels(16 * 1.1), round_channels(40 * 1.1), round_channels(192 * 1.1)
    (16, 48, 208)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the published files under this module's names.

    >>> list(renamed({"_blocks.0._bn1.bias": torch.zeros(1)}))
    ['blocks.0.depthwise.bn.bias']
    """
    return {_our_name(name): value for name, value in state.items()}


def _our_name(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)


def _initialise(module: nn.Module) -> None:
    """Kaiming's normal distribution over outputs for convolutions, as TensorFlow's; the classifier uniform by its outputs."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        limit = 1.0 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -limit, limit)
        nn.init.zeros_(module.bias)
