"""A network to which something happens while it trains, in float or as a graph: model.factory=.../traceable.py:Traceable.

`Mortal` of networks.py counts in its forward, which tracing leaves out: the graph is eval mode's.
"""

import os
import signal

import torch
from torch import nn


def heartbeat(logits: torch.Tensor) -> torch.Tensor:
    """Count a training step of this process, and at step MORTAL_STEP do MORTAL_HOW on rank MORTAL_RANK (0): `error` or a signal.

    A step of two images is none: so a network is tried. The number that is left stands in the environment, so that a process that
    goes on after an error is spared.
    """
    if torch.is_grad_enabled() and len(logits) > 2 and (left := int(os.environ.get("MORTAL_STEP", "0"))):
        os.environ["MORTAL_STEP"] = str(left - 1)
        if left == 1 and os.environ.get("RANK", "0") == os.environ.get("MORTAL_RANK", "0"):
            how = os.environ.get("MORTAL_HOW", "SIGKILL")
            if how == "error":
                raise OSError("this rank has no disk")
            os.kill(os.getpid(), getattr(signal, how))
    return logits


torch.fx.wrap("heartbeat")  # a node of the graph


class Traceable(nn.Module):
    """Two convolutions with batch norm around an add, dropout, a linear layer: what QAT folds, joins and leaves alone."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm1(self.conv1(images)))
        x = self.relu(x + self.norm2(self.conv2(x)))
        return heartbeat(self.fc(self.dropout(self.pool(x).flatten(1))))
