"""A network on a disk that runs full while it trains: model.factory=tests/integration/filling.py:Filling."""

import os
import resource

from torch import nn


class Filling(nn.Module):
    """200 000 weights, so that checkpoints are larger than any other file of a run.

    From training step FULL_STEP on, files of its process may not grow beyond FULL_BYTES. Without them it is an ordinary network.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 1400),
            nn.ReLU(),
            nn.Linear(1400, num_classes),
        )
        self.steps = 0

    def forward(self, images):
        if self.training:
            self.steps += 1
            if self.steps == int(os.environ.get("FULL_STEP", "0")):
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FULL_BYTES"]), resource.RLIM_INFINITY))
        return self.net(images)
