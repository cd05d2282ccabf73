"""One image file as the pixels that a network sees: the one way, for trees in memory, streamed ones and a single file.

Source: torchvision's references for `center`; Google's `preprocess_for_eval` of EfficientNet for `tensorflow`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qexp.base.torchvision_compat import torchvision
from qexp.config.preprocessing import Preprocessing

_TENSORFLOW_MARGIN = 32  # pixels that the crop leaves out at `image_size`


def transforms() -> ModuleType:
    """`torchvision.transforms.v2.functional`, which torchvision does not import by itself."""
    return importlib.import_module(f"{torchvision().__name__}.transforms.v2.functional")


def preprocess(image: Image.Image, how: Preprocessing, size: tuple[int, int] | None = None) -> Tensor:
    """Resize and crop.

    Args:
        image: RGB or grey.
        how: its `image_size` gives the result's height and width.
        size: (H, W) to come to instead, where `how` crops nothing.

    Returns:
        [C, H, W] uint8.
    """
    square = None if how.image_size is None else (how.image_size, how.image_size)
    if how.crop == "none":
        return _pixels(_resize(image, size or square, how))
    assert how.image_size is not None and square is not None, "checked with the settings"
    if how.crop == "center":
        assert how.resize is not None
        short, long = sorted(image.size)
        other = int(how.resize * long / short)  # rounded down, as torchvision does
        sides = (how.resize, other) if image.width >= image.height else (other, how.resize)
        return transforms().center_crop(_pixels(_resize(image, sides, how)), list(square))
    side = int(how.image_size / (how.image_size + _TENSORFLOW_MARGIN) * min(image.size))
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    return _pixels(_resize(image.crop((left, top, left + side, top + side)), square, how))


def _resize(image: Image.Image, size: tuple[int, int] | None, how: Preprocessing) -> Image.Image | Tensor:
    """To (H, W); Pillow's, which has a low-pass filter, or torchvision's of tensors without one."""
    if size is None or image.size == size[::-1]:
        return image
    if how.antialias:
        return image.resize(size[::-1], Image.Resampling[how.interpolation.upper()])
    mode = torchvision().transforms.InterpolationMode[how.interpolation.upper()]
    return transforms().resize(_pixels(image), list(size), interpolation=mode, antialias=False)


def _pixels(image: Image.Image | Tensor) -> Tensor:
    """[C, H, W] uint8."""
    if isinstance(image, Tensor):
        return image
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
