import importlib.util
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from qexp.base.types import Batch
from qexp.config.train import TrainSettings
from qexp.engine.fit import fit
from qexp.engine.hooks import NO_HOOKS
from qexp.engine.seed import seed_everything
from qexp.engine.state import FitState

NUM_IMAGES, NUM_CLASSES = 120, 4


class Problem:
    """Images that show their class as a blob in one quarter, and a small network for them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, NUM_CLASSES, (NUM_IMAGES,), generator=generator)
        pattern = nn.functional.one_hot(self.labels, NUM_CLASSES).float().view(-1, 1, 2, 2)
        noise = torch.randn(NUM_IMAGES, 1, 8, 8, generator=generator)
        self.images = pattern.repeat_interleave(4, 2).repeat_interleave(4, 3) + 0.3 * noise
        self.steps_per_epoch = 4

    def train_batches(self, epoch: int, first: int = 0):
        order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(32)[first:]:
            yield Batch(self.images[index], self.labels[index], index, len(index))

    def eval_batches(self, size: int = 50):
        for index in torch.arange(NUM_IMAGES).split(size):
            yield Batch(self.images[index], self.labels[index], index, len(index))

    @staticmethod
    def network(*, norm: bool = True, dropout: float = 0.0, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, NUM_CLASSES))

    @staticmethod
    def settings(**changes) -> TrainSettings:
        return TrainSettings(**{"epochs": 4, "lr": 0.1, "batch_size": 32, **changes})

    @staticmethod
    def stored(state: FitState) -> FitState:
        """Through a file and back, as a resume does."""
        buffer = io.BytesIO()
        torch.save(state.as_dict(), buffer)
        buffer.seek(0)
        return FitState(**torch.load(buffer, weights_only=True))

    @staticmethod
    def equal(a: nn.Module, b: nn.Module) -> bool:
        other = b.state_dict()
        return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


@pytest.fixture(scope="session")
def problem() -> Problem:
    return Problem()


@pytest.fixture
def train(problem):
    """Fit a network of the problem; returns it with its end-of-epoch reports."""

    def run(
        model=None,
        *,
        start=None,
        on_epoch_end=None,
        until=None,
        batches=problem.train_batches,
        on_checkpoint=None,
        hooks=NO_HOOKS,
        **changes,
    ):
        seed_everything(0)
        model = problem.network() if model is None else model
        ends = []

        def keep(end):
            ends.append(end)
            if on_epoch_end:
                on_epoch_end(end)
            if end.epoch == until:
                raise KeyboardInterrupt

        options = {"steps_per_epoch": problem.steps_per_epoch, "device": torch.device("cpu"), "start": start, "progress": False}
        options["hooks"] = hooks
        if on_checkpoint:
            options["on_checkpoint"] = on_checkpoint
        try:
            fit(model, batches, problem.settings(**changes), on_epoch_end=keep, **options)
        except KeyboardInterrupt:
            pass
        return model, ends

    return run


@pytest.fixture(scope="session")
def parametrized():
    """The module `parametrized.py`, which the ranks run too."""
    spec = importlib.util.spec_from_file_location("tests_engine_parametrized", Path(__file__).with_name("parametrized.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
