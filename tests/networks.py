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
