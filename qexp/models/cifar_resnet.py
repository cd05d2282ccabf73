"""The ResNets of He et al. for small images: three stages of 16, 32 and 64 channels, 6n + 2 layers.

Shortcuts are option A: subsampling and zero channels, no parameters. Rejected: torchvision's ResNets with a small stem, which are
other networks (four stages, 64 to 512 channels, projections) and whose numbers compare with no paper on CIFAR.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels in equal numbers before and after the present ones.

    Args:
        channels_added: even; 0 only subsamples.
    """

    def __init__(self, channels_added: int) -> None:
        super().__init__()
        assert channels_added % 2 == 0
        self.channels_added = channels_added

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + channels_added, ceil(H/2), ceil(W/2)]."""
        half = self.channels_added // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"channels_added={self.channels_added}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H/stride), ceil(W/stride)]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of `depth` = 6n + 2 layers for images of 8 x 8 pixels and more.

    Convolutions and the classifier start from Kaiming's normal distribution, std = sqrt(2 / fan_in); the bias from 0.

    Args:
        depth: 8 (MLPerf Tiny's size), 20, 32, 44, 56 or 110.
        num_classes: outputs.
        in_channels: channels of the images.

    Source: He et al. 2015, Deep Residual Learning for Image Recognition, section 4.2; initialization He et al. 2015, Delving Deep
    into Rectifiers, equation 10.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        assert depth % 6 == 2, depth
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` blocks, the first with the stride and the change of channels."""
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


resnet8, resnet20, resnet32 = (partial(CifarResNet, depth) for depth in (8, 20, 32))
resnet44, resnet56, resnet110 = (partial(CifarResNet, depth) for depth in (44, 56, 110))
