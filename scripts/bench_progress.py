"""What showing progress costs a training: the loop with it over the loop without, and a step of nothing.

    python scripts/bench_progress.py [batch_size=16] [steps=60] [rounds=15]

Each round trains the same small network (ResNet-8 on images of 8 x 8, where a step is as short as any) four times, without, with,
with and without, so that a machine that slows down slows both alike; the time is processor time of all threads, which other
work on the machine leaves alone. Printed: the median ratio and its quartiles, and nanoseconds that an item of `track` takes.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
from bench_common import options, quartiles

from qexp.base.progress import track
from qexp.base.progress_shown import shown
from qexp.base.types import Batch
from qexp.config.train import TrainSettings
from qexp.engine.fit import fit
from qexp.models.cifar_resnet import CifarResNet

ITEMS = 1_000_000


def seconds(batches: list[Batch], *, with_progress: bool) -> float:
    """Processor time of an epoch."""
    torch.manual_seed(0)
    model = CifarResNet(8, num_classes=10, in_channels=1)
    settings = TrainSettings(epochs=1, lr=0.01, batch_size=len(batches[0].labels))
    began = time.process_time()
    with shown() if with_progress else nullcontext():
        fit(
            model,
            lambda epoch, first: batches,
            settings,
            steps_per_epoch=len(batches),
            device=torch.device("cpu"),
            progress=False,
        )
    return time.process_time() - began


def item_ns() -> float:
    """What an item of `track` takes beyond one of its own loop."""
    times = []
    with shown():
        for items in (range(ITEMS), track(range(ITEMS), "item")):
            began = time.process_time()
            for _ in items:
                pass
            times.append(time.process_time() - began)
    return 1e9 * (times[1] - times[0]) / ITEMS


def main() -> None:
    """Measure and print."""
    chosen = {name: int(text) for name, text in options({"batch_size": "16", "steps": "60", "rounds": "15"}).items()}
    size = chosen["batch_size"]
    batch = Batch(torch.randn(size, 1, 8, 8), torch.randint(0, 10, (size,)), torch.arange(size), size)
    batches = [batch] * chosen["steps"]
    seconds(batches, with_progress=False)
    ratios = []
    for _ in range(chosen["rounds"]):
        times = [seconds(batches, with_progress=on) for on in (False, True, True, False)]
        ratios.append((times[1] + times[2]) / (times[0] + times[3]))
    print("with progress / without, of a training: median {1:.4f}, quartiles {0:.4f} to {2:.4f}".format(*quartiles(ratios)))
    print(f"an item of track: {item_ns():.0f} ns")


if __name__ == "__main__":
    main()
