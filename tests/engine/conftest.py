import pytest
import torch
from torch import nn

from qexp.base.nouns import Batch
from qexp.engine.settings import TrainSettings

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


@pytest.fixture(scope="session")
def problem() -> Problem:
    return Problem()
