"""From settings to a network: the CIFAR ResNets, torchvision's classification networks, or a researcher's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from qexp.base.catalog import CUSTOM
from qexp.base.errors import UserError, raised
from qexp.base.outputs import main_output
from qexp.config.model import NETWORKS, TORCHVISION, ModelSettings
from qexp.models.custom import build_custom
from qexp.models.zoo import build_torchvision


def build_model(settings: ModelSettings, *, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """Build the network, on the CPU, in training mode.

    `settings.weights=DEFAULT` gives torchvision's own weights; a file there is left to `qexp.models.weights.load_weights`.
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
    name, outputs = settings.name, settings.num_classes or num_classes
    if settings.weights == "DEFAULT" and name not in TORCHVISION:
        raise UserError("model.weights", "DEFAULT", allowed="a file", remedy=f"Only torchvision's networks have it, not {name}.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the accelerators, which are not forked here
        if name == CUSTOM:
            assert settings.factory is not None
            model = build_custom(settings.factory, num_classes=outputs, in_channels=image_shape[0])
        elif name in NETWORKS:
            build = cast("Callable[..., nn.Module]", NETWORKS.load(name))
            model = build(num_classes=outputs, in_channels=image_shape[0])
        else:
            pretrained = settings.weights == "DEFAULT"
            model = build_torchvision(name, num_classes=outputs, image_shape=image_shape, pretrained=pretrained)
        _check_forward(model, settings, outputs, image_shape)
    return model.train()


def _check_forward(model: nn.Module, settings: ModelSettings, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Run two black images once: shows what the network does not take, and gives lazy modules their shapes."""
    shape = " x ".join(str(size) for size in image_shape)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
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
