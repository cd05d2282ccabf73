"""The network of the stored trainings. Their hashes cover this file, byte by byte, so it must never change, not even in form."""

import os
import signal

import torch
from torch import nn


def heartbeat(logits: torch.Tensor) -> torch.Tensor:
    """Count a training step of this process, and kill it at step KILL_AT_STEP."""
    if torch.is_grad_enabled() and (left := int(os.environ.get("KILL_AT_STEP", "0"))):
        os.environ["KILL_AT_STEP"] = str(left - 1)
        if left == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return logits


torch.fx.wrap("heartbeat")  # a node of the graph


class Small(nn.Module):
    """Two convolutions with batch norm around an add, dropout, a linear layer."""

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
