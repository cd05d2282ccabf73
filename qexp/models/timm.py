"""timm's classification networks, by `model=timm model.name=NAME`; the extra `timm` installs it."""

from __future__ import annotations

import contextlib
import importlib
import math
from types import ModuleType
from typing import Any

from torch import nn

from qexp.base.errors import UserError, nearest
from qexp.base.torchvision_compat import torchvision
from qexp.config.model import ModelSettings
from qexp.config.preprocessing import Preprocessing


def timm() -> ModuleType:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        torchvision()  # which timm imports, and which may not load by itself
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            "model", "timm", allowed="another network here", remedy="pip install 'qexp[timm]' brings timm."
        ) from error


def build_timm(settings: ModelSettings, *, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build one of timm's networks, with the weights of its hub where it is pretrained.

    Raises:
        UserError: an unknown name, images that it cannot be made for, or weights that cannot be fetched.
    """
    name, (channels, height, width) = settings.name, image_shape
    options: dict[str, object] = {"num_classes": num_classes, "in_chans": channels}
    if _known(name)["fixed_input_size"]:
        options["img_size"] = (height, width)
    try:
        return timm().create_model(name, pretrained=settings.is_pretrained, **options)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        lines = str(error).strip().splitlines()
        if settings.is_pretrained:
            remedy = f"Fetching them failed ({lines[0] if lines else type(error).__name__}); give a file, model.pretrained=FILE."
            raise UserError("model.pretrained", True, allowed="weights that can be downloaded", remedy=remedy) from error
        remedy = f"For {height} x {width} pixels: {lines[0] if lines else type(error).__name__}"
        raise UserError("model.name", name, allowed="another network, or another image size", remedy=remedy) from error


def timm_preprocessing(name: str) -> Preprocessing:
    """What a network's own `pretrained_cfg` says of the images of its evaluation."""
    how = timm().data.resolve_data_config(pretrained_cfg=_known(name))
    size = how["input_size"][1]
    return Preprocessing(
        image_size=size,
        resize=math.floor(size / how["crop_pct"]) if how["crop_mode"] == "center" else None,
        crop="center" if how["crop_mode"] == "center" else "none",
        interpolation=how["interpolation"],
        mean=tuple(how["mean"]),
        std=tuple(how["std"]),
    )


def timm_classes(name: str) -> int:
    """Outputs of the classifier of its published weights."""
    return int(_known(name)["num_classes"])


def _known(name: str) -> dict[str, Any]:
    """What the library knows of a network and of its weights.

    Raises:
        UserError: it has none of that name, or no weights of that tag.
    """
    library, known = timm(), None
    if library.is_model(name):
        with contextlib.suppress(RuntimeError):  # a tag that it does not have
            known = library.get_pretrained_cfg(name)
    if known is None:
        raise UserError("model.name", name, allowed="a network of timm", remedy=nearest(name, library.list_models()))
    return dict(known.to_dict())
