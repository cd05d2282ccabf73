"""What the benchmarks of the training loop share: the work, the clock, options, quartiles and the CSV."""

from __future__ import annotations

import csv
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from qexp.base import dist
from qexp.base.types import Batch
from qexp.config.data import DataSettings
from qexp.config.model import ModelSettings
from qexp.config.train import TrainSettings
from qexp.data.bundle import DataBundle
from qexp.engine.fit import EpochEnd, fit
from qexp.engine.optim import lr_at
from qexp.models.build import build_model

STEPS_PER_EPOCH = 100  # at most
WARM_STEPS = 2
# `cpu` is the time of the process's processors, for a machine that others use: what they take is not counted, what they evict
# from its caches is.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def like_cifar(num_train: int, num_test: int = 1) -> DataSettings:
    """Images of CIFAR's size and augmentation that need no download."""
    sizes = {"num_train": num_train, "num_test": num_test}
    return DataSettings(name="fake", image_size=32, num_classes=10, mean=[0.5], std=[0.2], augment="crop_flip", **sizes)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")


@dataclass(frozen=True)
class Work:
    """One training: `steps` steps an epoch, as `settings` say, on this rank's share of the batches."""

    bundle: DataBundle
    model: str
    settings: TrainSettings
    steps: int
    device: torch.device

    def batches(self, epoch: int) -> Iterator[Batch]:
        size, share = self.settings.batch_size, {"rank": dist.rank(), "world_size": dist.world_size()}
        return islice(self.bundle.train_batches(epoch=epoch, batch_size=size, seed=0, device=self.device, **share), self.steps)

    def build(self) -> nn.Module:
        shape = self.bundle.image_shape
        model = build_model(ModelSettings(name=self.model), num_classes=self.bundle.num_classes, image_shape=shape, seed=0)
        return model.to(self.device)

    def rate(self, step: int) -> float:
        return lr_at(step, self.steps, self.settings)

    def cut(self, steps: int) -> Work:
        """The same with so many steps in all, or a few more."""
        epochs = math.ceil(steps / STEPS_PER_EPOCH)
        return replace(self, steps=math.ceil(steps / epochs), settings=replace(self.settings, epochs=epochs))


class Stopwatch:
    """Runs from the request for batch WARM_STEPS of the first epoch until `stop`, by one of `CLOCKS`."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.perf_counter) -> None:
        self.work, self.clock, self.began, self.seconds = work, clock, 0.0, 0.0
        self.images = (work.settings.epochs * work.steps - WARM_STEPS) * work.settings.batch_size

    def batches(self, epoch: int) -> Iterator[Batch]:
        if epoch > 1:
            yield from self.work.batches(epoch)
            return
        batches = self.work.batches(epoch)
        yield from islice(batches, WARM_STEPS)
        self.began = self._now()
        yield from batches

    def stop(self) -> None:
        self.seconds = self._now() - self.began

    def _now(self) -> float:
        if self.work.device.type == "cuda":
            torch.cuda.synchronize(self.work.device)
        return self.clock()


def qexp_fit(model: nn.Module, work: Work, watch: Stopwatch) -> None:
    def end_of_epoch(end: EpochEnd) -> None:
        if end.epoch == work.settings.epochs:
            watch.stop()

    fit(
        model,
        lambda epoch, _: watch.batches(epoch),
        work.settings,
        steps_per_epoch=work.steps,
        device=work.device,
        on_epoch_end=end_of_epoch,
        progress=False,
    )


def alternating(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Round and name: every name once a round, the first one in turn, after round -1, which does not count."""
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            yield number, name


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def options(defaults: dict[str, str]) -> dict[str, str]:
    """`defaults` with what the command line says."""
    given = dict(text.partition("=")[::2] for text in sys.argv[1:])
    if not given.keys() <= defaults.keys():
        raise SystemExit(f"Options and their defaults: {' '.join(f'{key}={value}' for key, value in defaults.items())}")
    chosen = defaults | given
    if chosen.get("clock", "wall") not in CLOCKS:
        raise SystemExit(f"clock={chosen['clock']}: one of {', '.join(CLOCKS)}")
    return chosen
