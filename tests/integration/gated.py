"""A network that stops in the middle of its training until it is let on: model.factory=tests/integration/gated.py:Gated."""

import os
import time
from pathlib import Path

from torch import nn

STEP = 30  # of 40: in the second of two epochs on the digits


class Gated(nn.Module):
    """At step STEP it writes its process's number to `reached` in the folder GATE and waits for the file `open` there.

    Where there is a file `fail` it removes that and raises instead. Without GATE it is an ordinary network.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, num_classes),
        )
        self.steps = 0

    def forward(self, images):
        if self.training:
            self.steps += 1
            if self.steps == STEP and "GATE" in os.environ:
                _wait(Path(os.environ["GATE"]))
        return self.net(images)


def _wait(folder: Path) -> None:
    if (folder / "fail").exists():
        (folder / "fail").unlink()
        raise OSError("the gate is broken")
    partial = folder / f"{os.getpid()}.tmp"
    partial.write_text(str(os.getpid()))
    partial.rename(folder / "reached")
    deadline = time.monotonic() + 900
    while not (folder / "open").exists():
        assert time.monotonic() < deadline, "nobody opened the gate"
        time.sleep(0.02)
