"""The network tried as it will be used, on two images, before anything starts.

What shows only when a network is copied, trained or evaluated a second time would else end a job hours later, or give a number
that means nothing. Nothing of the trial stays: it runs on copies, and leaves the generator as it was. Networks of ours and
of torchvision repeat and rebuild; of them only the training step is tried.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.base import dist
from qexp.base.errors import UserError, raised
from qexp.base.outputs import main_output
from qexp.base.user_code import exits_are_errors
from qexp.config.root import Config
from qexp.config.train import TrainSettings
from qexp.engine.evaluate import unchanged
from qexp.engine.loss import total_loss

if TYPE_CHECKING:
    from qexp.data.bundle import DataBundle

_MORE = 64  # how far above its batch size a training is told of one that leaves no image alone


@dataclass(frozen=True)
class Trial:
    """What of a job decides how its network is used.

    Args:
        config: of the job.
        shape: (C, H, W) of its images.
        num_classes: width of the logits.
        num_train: images of the train split.
        num_scored: images that an evaluation scores.
    """

    config: Config
    shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_scored: int

    @classmethod
    def of(cls, config: Config, bundle: DataBundle) -> Trial:
        """The trial of a job's network on the shapes of its data."""
        scored = config.evaluate.num_images or bundle.split_sizes[config.evaluate.split]
        classes = config.model.num_classes or bundle.num_classes
        return cls(config, bundle.image_shape, classes, bundle.split_sizes["train"], scored)

    @property
    def trains(self) -> bool:
        """False where a checkpoint is looked at."""
        return self.config.checkpoint is None

    @property
    def key(self) -> list[object]:
        """Jobs with the same network and the same key need one trial."""
        alone = self.trains and fewest_images(self.config.recipe, self.num_train) == 1
        return [self.shape, self.num_classes, self.trains, alone, self._fewest_scored]

    @property
    def _fewest_scored(self) -> int:
        batch = self.config.evaluate.batch_images
        return min(self.num_scored % batch or batch, self.num_scored)

    def run(self, model: nn.Module, build: Callable[[], nn.Module]) -> None:
        """Copy, rebuild, evaluate and train it.

        Args:
            model: as it was built, with the weights that it begins with; left as it is.
            build: makes it again.

        Raises:
            UserError: it cannot be used; names `model.factory`, or the setting that is wrong with it.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            images = torch.randn(2, *self.shape)
            if self.config.model.factory is not None:
                self._check_repeats(model, build, images)
            if self.trains:
                self._check_trains(model, images)

    def _check_repeats(self, model: nn.Module, build: Callable[[], nn.Module], images: Tensor) -> None:
        """The network gives the same logits twice, and so does another of the same weights, whatever the size of the batch."""
        logits = self._evaluate(self._copied(model), images)
        again = build()
        if {*map(id, again.parameters())} & {*map(id, model.parameters())}:
            raise self._refusal("a function that makes a new network at each call", "It returned the same tensors again.")
        before, after = ({name: [*value.shape] for name, value in net.state_dict().items()} for net in (model, again))
        if before != after:
            other = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
            remedy = f"Called twice, it returned networks that differ in {', '.join(other[:4])}{', ...' * (len(other) > 4)}."
            raise self._refusal("a function that makes the same network at each call", remedy)
        again.load_state_dict(model.state_dict())
        if not _equal(self._evaluate(again, images), logits):
            remedy = "Two that it made gave different logits with one state dict: what decides must be a parameter or a buffer."
            raise self._refusal("a function that makes the same network at each call", remedy)

    def _evaluate(self, network: nn.Module, images: Tensor) -> Tensor:
        """The logits of the images, as an evaluation computes them."""
        network.eval()
        few = images.new_zeros(1 if self._fewest_scored == 1 else 3, *self.shape)
        with self._says("a network that can be evaluated"), torch.inference_mode(), unchanged({"the network": network}):
            first, second = (main_output(network(images)) for _ in range(2))
            self._check_shape(main_output(network(few)), len(few))
        if not _equal(first, second):
            remedy = "The same images gave different logits twice: F.dropout, say, needs training=self.training."
            raise self._refusal("a network whose output repeats in eval mode", remedy)
        return first

    def _check_trains(self, model: nn.Module, images: Tensor) -> None:
        """A training step works, and so it does on one image where the recipe leaves one alone."""
        network = self._copied(model).train()
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise self._refusal("a network with parameters to train", "It has none that require a gradient.")
        names = list(network.state_dict())
        with self._says("a network that can be trained"):
            self._step(network, images)
        if list(network.state_dict()) != names:
            remedy = f"In training it got or lost {', '.join(sorted({*names} ^ {*network.state_dict()})[:4])}."
            raise self._refusal("a network whose state dict keeps its names", remedy)
        recipe = self.config.recipe
        if fewest_images(recipe, self.num_train) > 1:
            return
        try:
            self._step(network, images[:1])
        except Exception as error:  # whatever a network raises on a single image
            allowed = "a size that leaves no image alone in a step: this network cannot train on one"
            sizes = range(recipe.batch_size + 1, recipe.batch_size + _MORE)
            better = next((size for size in sizes if fewest_images(recipe, self.num_train, size) > 1), None)
            advice = f" train.batch_size={better} does with {self.num_train} images." if better is not None else ""
            raise UserError("train.batch_size", recipe.batch_size, allowed=allowed, remedy=raised(error) + advice) from error

    def _step(self, network: nn.Module, images: Tensor) -> None:
        """Forward and backward."""
        output = network(images)
        logits = main_output(output)
        self._check_shape(logits, len(images))
        beside = () if isinstance(output, Tensor) else [item for item in output[1:] if isinstance(item, Tensor)]
        if foreign := [str([*item.shape]) for item in beside if item.shape != logits.shape]:
            allowed = "a network that returns its logits, in training with those of auxiliary heads behind them"
            remedy = (
                f"Beside logits {[*logits.shape]} it returned {', '.join(foreign)}, which would be trained as an auxiliary head."
            )
            raise self._refusal(allowed, remedy)
        labels = torch.arange(len(images)) % self.num_classes
        loss = total_loss(output, lambda logits: F.cross_entropy(logits.float(), labels, reduction="sum"))
        if loss.requires_grad:
            loss.backward()
        if all(parameter.grad is None for parameter in network.parameters()):
            remedy = "No gradient reaches them: is there a detach(), .data or no_grad in its forward?"
            raise self._refusal("a network whose logits depend on its parameters", remedy)

    def _check_shape(self, logits: Tensor, count: int) -> None:
        if logits.shape != (count, self.num_classes):
            remedy = f"For {count} image{'s' * (count > 1)} it returned {[*logits.shape]}."
            raise self._refusal(f"a network that returns [N, {self.num_classes}] for N images", remedy)

    def _copied(self, model: nn.Module) -> nn.Module:
        with self._says("a network that copy.deepcopy copies"):
            return copy.deepcopy(model)

    @contextmanager
    def _says(self, allowed: str) -> Iterator[None]:
        """Within, whatever the network raises is the user's to mend."""
        try:
            with exits_are_errors():
                yield
        except UserError:
            raise
        except Exception as error:
            raise self._refusal(allowed, raised(error)) from error

    def _refusal(self, allowed: str, remedy: str) -> UserError:
        return UserError(*self.config.model.named, allowed=allowed, remedy=remedy)


def fewest_images(recipe: TrainSettings, num_train: int, batch_size: int | None = None) -> int:
    """The fewest images that a network sees at once in training: of a step, a rank's share of it, and its accumulation.

    >>> recipe = TrainSettings(epochs=1, lr=0.1, batch_size=64)
    >>> fewest_images(recipe, 256), fewest_images(recipe, 257), fewest_images(recipe, 257, batch_size=65)
    (64, 1, 62)
    """
    batch = batch_size or recipe.batch_size
    ranks = 1 if recipe.sync_bn else dist.world_size()
    shares = [max(1, min(step, num_train) // ranks) for step in (batch, num_train % batch or batch)]
    return min(share // min(recipe.accumulate, share) for share in shares)


def _equal(logits: Tensor, others: Tensor) -> bool:
    """Bit for bit, where they are numbers."""
    return torch.equal(logits.nan_to_num(), others.nan_to_num())
