"""torchvision's classification networks, for any number of classes and input channels."""

from __future__ import annotations

from typing import Any

from torch import nn

from qexp.base.errors import UserError
from qexp.base.torchvision_compat import torchvision

IMAGENET_CLASSES = 1000
_INCEPTION_SIZE = 299  # below it the auxiliary head, which runs in training, has fewer pixels than its kernel


def build_torchvision(name: str, *, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool) -> nn.Module:
    """Build one of torchvision's networks, initialized as torchvision does it, or with its best published weights.

    Where `pretrained` meets another number of classes, the classifier (each layer with 1000 outputs) is a fresh one. Where images
    have other than three channels, the first convolution is a fresh one.

    Raises:
        UserError: an image size that the network's constructor refuses, weights that cannot be fetched, or pretrained weights for
            other than three channels.
    """
    channels, height, width = image_shape
    if pretrained and channels != 3:
        raise UserError("model.pretrained", True, allowed=f"false or a file for images of {channels} channels")
    options = _options(name, height, width, pretrained)
    models = torchvision().models
    try:
        if pretrained:
            model = models.get_model(name, weights="DEFAULT", progress=False, **options)
        else:
            model = models.get_model(name, num_classes=num_classes, **options)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash of the file a RuntimeError
        if not pretrained:
            raise
        remedy = f"Fetching them failed ({error}); give a file, model.pretrained=FILE."
        raise UserError("model.pretrained", True, allowed="weights that can be downloaded", remedy=remedy) from error
    except (ValueError, AssertionError) as error:
        allowed = "another network, or another image size"
        raise UserError("model", name, allowed=allowed, remedy=f"For {height} x {width} pixels: {error}") from error
    if pretrained and num_classes != IMAGENET_CLASSES:
        _replace_classifier(model, num_classes)
    if channels != 3:
        _replace_first_conv(model, channels)
    return model


def _options(name: str, height: int, width: int, pretrained: bool) -> dict[str, Any]:
    """Arguments that single families need."""
    if name == "googlenet" and not pretrained:
        return {"init_weights": True}
    if name == "inception_v3":
        large = min(height, width) >= _INCEPTION_SIZE
        return {"aux_logits": large} if pretrained else {"aux_logits": large, "init_weights": True}
    if name.startswith("vit_"):
        if height != width:
            raise UserError("model", name, allowed="square images", remedy=f"These are {height} x {width}.")
        return {"image_size": height}
    if name.startswith("maxvit"):
        return {"input_size": (height, width)}
    return {}


def _replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Put fresh layers of `num_classes` outputs in the place of those with 1000."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module.out_features == IMAGENET_CLASSES:
            model.set_submodule(path, nn.Linear(module.in_features, num_classes, bias=module.bias is not None))
        elif isinstance(module, nn.Conv2d) and module.out_channels == IMAGENET_CLASSES:
            model.set_submodule(path, _like(module, module.in_channels, num_classes))


def _replace_first_conv(model: nn.Module, channels: int) -> None:
    """Put a fresh convolution of `channels` inputs in the place of the one that sees the image."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            fresh = _like(module, channels, module.out_channels)
            nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
            model.set_submodule(path, fresh)
            return
    raise AssertionError("a torchvision network without a convolution of three input channels")


def _like(conv: nn.Conv2d, in_channels: int, out_channels: int) -> nn.Conv2d:
    """A fresh convolution that differs from `conv` in its channels alone."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        _pair(conv.kernel_size),
        _pair(conv.stride),
        conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
        _pair(conv.dilation),
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    """The two numbers of a 2d convolution's setting."""
    height, width = sizes
    return height, width
