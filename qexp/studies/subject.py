"""The network and the images that a study looks at: a checkpoint of the user's, or a small network trained in a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import Batch
from qexp.config.data import DataSettings
from qexp.config.model import ModelSettings
from qexp.config.study import StudySettings
from qexp.config.train import TrainSettings
from qexp.data.bundle import DataBundle
from qexp.data.load import load_data
from qexp.engine.evaluate import Evaluation, evaluate
from qexp.engine.fit import fit
from qexp.models.build import build_model
from qexp.models.weights import load_weights
from qexp.nn.fold import fold_batch_norm

BATCH_SIZE = 100
_RECIPE = TrainSettings(epochs=8, lr=0.1, batch_size=64, warmup_epochs=1)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained network in eval mode, and its images.

    Args:
        label: for the reader.
        bundled: it is the small network, of which only identities are expected.
        test: batches of test images.
        calib: batches to re-estimate batch norm with.
        num_classes: width of the logits.
        norms: name of each batch norm behind a conv -> that conv's name.
    """

    label: str
    model: nn.Module
    test: tuple[Batch, ...]
    calib: tuple[Batch, ...]
    num_classes: int
    norms: Mapping[str, str]
    bundled: bool

    def evaluate(self, models: Mapping[str, nn.Module]) -> dict[str, Evaluation]:
        """Score networks on the test images, side by side."""
        return evaluate(models, self.test, class_count=self.num_classes)


def load_subject(settings: StudySettings) -> Subject:
    """The checkpoint on the images of `data.root`, or, where neither is given, a small network trained on the bundled digits.

    Raises:
        UserError: one is given without the other, a file does not fit, or no conv is followed by batch norm.
    """
    bundled = settings.checkpoint is None and settings.data.root is None
    if (settings.checkpoint is None) != (settings.data.root is None):
        both = (("checkpoint", settings.checkpoint), ("data.root", settings.data.root))
        (key, value), (other, _) = sorted(both, key=lambda item: item[1] is None)
        remedy = "Without both a small network is trained on the bundled digits."
        raise UserError(key, value, allowed=f"given together with {other}", remedy=remedy)
    bundle = load_data(_data(settings, bundled))
    if settings.checkpoint is None:
        model, what = _small(bundle), "a small network on the bundled digits"
    else:
        model = _pretrained(settings.model, settings.checkpoint, bundle)
        what = f"{settings.model} ({Path(settings.checkpoint).name})"
    model.eval().requires_grad_(False)
    layers = fold_batch_norm(model).layers
    modules = dict(model.named_modules())
    norms = {norm: layer for norm, layer in layers.items() if isinstance(modules[layer], nn.Conv2d)}
    if not norms:
        raise UserError("model", settings.model, allowed="a network with batch norm behind its convolutions")
    batches = partial(bundle.eval_batches, batch_size=BATCH_SIZE, device="cpu")
    test = tuple(batches("test", num_images=settings.num_images))
    calib = tuple(batches("calib"))
    num_test, num_calib = (sum(len(batch.labels) for batch in part) for part in (test, calib))
    label = f"{what}, n = {num_test} test images, {num_calib} for batch norm, data {bundle.fingerprint}"
    return Subject(label=label, model=model, test=test, calib=calib, num_classes=bundle.num_classes, norms=norms, bundled=bundled)


def _data(settings: StudySettings, bundled: bool) -> DataSettings:
    if bundled:
        return DataSettings(name="digits", mean=[0.3053], std=[0.376], num_calib=200, num_test=360)
    data = settings.data
    return DataSettings(name="imagefolder", root=data.root, mean=data.mean, std=data.std, num_calib=data.num_calib)


def _pretrained(name: str, checkpoint: str, bundle: DataBundle) -> nn.Module:
    model = build_model(ModelSettings(name=name), num_classes=bundle.num_classes, image_shape=bundle.image_shape, seed=0)
    load_weights(model, checkpoint, key="checkpoint")
    return model


def _small(bundle: DataBundle) -> nn.Module:
    """Three convolutions with batch norm, trained for a moment; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = small_network(bundle.image_shape[0], bundle.num_classes)
        batches = partial(bundle.train_batches, batch_size=_RECIPE.batch_size, seed=0, device="cpu")
        fit(
            model,
            lambda epoch, first: batches(epoch=epoch, start_step=first),
            _RECIPE,
            steps_per_epoch=bundle.steps_per_epoch(_RECIPE.batch_size),
            device=torch.device("cpu"),
            progress=False,
        )
    return model


def small_network(in_channels: int, num_classes: int) -> nn.Module:
    """Images [N, in_channels, H, W] -> logits, 11 000 weights."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    body = [*block(in_channels, 16, 1), *block(16, 24, 2), *block(24, 32, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
