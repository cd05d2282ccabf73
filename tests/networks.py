"""Networks of a few hundred weights, for tests that are not about networks: model.factory=tests/networks.py:tiny."""

from torch import nn


def tiny(num_classes: int, in_channels: int) -> nn.Module:
    """Convolution, batch norm, linear layer: a thousand images in a few hundredths of a second."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
