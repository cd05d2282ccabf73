"""Networks of a few hundred weights, for tests that are not about networks: model.factory=tests/networks.py:tiny."""

import os
import signal

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


class Mortal(nn.Module):
    """`tiny`, which kills its process at training step MORTAL_STEP (no clean-up, as kill -9), or raises on rank MORTAL_RANK."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net, self.steps = tiny(num_classes, in_channels), 0

    def forward(self, images):
        if self.training:
            self.steps += 1
            if self.steps == int(os.environ.get("MORTAL_STEP", "0")):
                if "MORTAL_RANK" not in os.environ:
                    os.kill(os.getpid(), signal.SIGKILL)
                if os.environ["RANK"] == os.environ["MORTAL_RANK"]:
                    raise OSError("this rank has no disk")
        return self.net(images)
