"""From settings to a network: ours, torchvision's and timm's classification networks, or a researcher's own."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import cast

import torch
from torch import nn

from qexp.base.errors import UserError, raised
from qexp.base.outputs import main_output
from qexp.base.user_code import exits_are_errors
from qexp.config.model import TIMM, ModelSettings, NetworkInfo
from qexp.models.custom import build_custom
from qexp.models.pretrained import load_pretrained
from qexp.models.timm import build_timm
from qexp.models.zoo import build_torchvision


def build_model(settings: ModelSettings, *, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """Build the network, on the CPU, in training mode.

    `settings.weights=DEFAULT` gives pretrained weights; a file there is left to `qexp.models.weights.load_weights`.
    The initialization is a function of `seed`; torch's global generators are left as they were.

    Args:
        settings: name, factory, weights.
        num_classes: of the data; `settings.num_classes` goes before it.
        image_shape: (C, H, W) of the images that it must accept.
        seed: of the initialization.

    Raises:
        UserError: a factory that fails, weights that cannot be fetched, images that the network does not take,
            logits that are not [N, num_classes].
    """
    outputs, channels = settings.num_classes or num_classes, image_shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the accelerators, which are not forked here
        if settings.library == TIMM:
            model = build_timm(settings, num_classes=outputs, image_shape=image_shape)
        elif settings.is_custom:
            assert settings.factory is not None
            model = build_custom(settings.factory, num_classes=outputs, in_channels=channels)
        elif settings.row is not None:
            model = _build_own(settings.row, outputs, image_shape)
            if settings.is_pretrained:
                load_pretrained(model, settings.row)
        else:
            pretrained = settings.is_pretrained
            model = build_torchvision(settings.name, num_classes=outputs, image_shape=image_shape, pretrained=pretrained)
        _check_forward(model, settings, outputs, image_shape)
    return model.train()


def _build_own(row: NetworkInfo, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """A network of ours, called with what it takes."""
    build = cast("Callable[..., nn.Module]", row.load())
    offered = {"num_classes": num_classes, "in_channels": image_shape[0], "image_size": image_shape[1:]}
    return build(**{name: value for name, value in offered.items() if name in signature(build).parameters})


def _check_forward(model: nn.Module, settings: ModelSettings, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Run two black images once: shows what the network does not take, and gives lazy modules their shapes."""
    shape = " x ".join(str(size) for size in image_shape)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), exits_are_errors():
            output = model(torch.zeros(2, *image_shape))
    except Exception as error:  # whatever a network raises on images that it was not made for
        allowed = f"a network that takes images of {shape} (channels, height, width)"
        raise UserError(*settings.named, allowed=allowed, remedy=raised(error)) from error
    finally:
        for module, training in modes:
            module.training = training
    logits = main_output(output)
    if logits.shape != (2, num_classes):
        allowed = f"a network that returns [N, {num_classes}] for {num_classes} classes"
        raise UserError(*settings.named, allowed=allowed, remedy=f"For 2 images it returned {list(logits.shape)}.")
