"""Networks of a few hundred weights, for tests that are not about networks: model.factory=tests/networks.py:tiny."""

import os
import signal

from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune


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


class Mortal(nn.Module):
    """`tiny` with dropout, to which something happens at training step MORTAL_STEP of this process, on rank MORTAL_RANK (0).

    MORTAL_HOW is a signal to itself (SIGKILL, no clean-up, or SIGTERM), or `error`. A worker group that torchrun has started
    again is spared.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net, self.steps = nn.Sequential(nn.Dropout(0.2), tiny(num_classes, in_channels)), 0

    def forward(self, images):
        if self.training:
            self.steps += 1
            if self.steps == int(os.environ.get("MORTAL_STEP", "0")) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
                self._happen()
        return self.net(images)

    @staticmethod
    def _happen():
        if os.environ.get("RANK", "0") != os.environ.get("MORTAL_RANK", "0"):
            return
        how = os.environ.get("MORTAL_HOW", "SIGKILL")
        if how == "error":
            raise OSError("this rank has no disk")
        os.kill(os.getpid(), getattr(signal, how))


def normed(num_classes: int, in_channels: int) -> nn.Module:
    """`tiny` with weights that are made of others at each forward, in both of torch's ways."""
    net = tiny(num_classes, in_channels)
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    parametrizations.weight_norm(net[5])
    return net


def tied(num_classes: int, in_channels: int) -> nn.Module:
    """One weight in two layers, and one layer under three names."""
    return Tied(num_classes, in_channels)


class Tied(nn.Module):
    """`near` and `far` share a weight; `blocks` lists one layer three times."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)
        self.near, self.far = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.far.weight = self.near.weight
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1)] * 3)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        x = functional.relu(self.near(x)) + functional.relu(self.far(x))
        for block in self.blocks:
            x = x + functional.relu(block(x))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))
