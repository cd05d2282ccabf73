"""One image file as a network takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.data.bundle import DataBundle
from qexp.data.folder import DECODE_ERRORS, corrupt, open_rgb


def read_image(path: Path, bundle: DataBundle, *, center_crop: bool) -> Tensor:
    """A file as a network takes it: [1, C, H, W] float32, resized and normalized.

    Args:
        path: of the file.
        bundle: the data set whose images the network takes.
        center_crop: scale the short side to 256 for 224 pixels and cut the centre, as ImageNet's test images; else squash.

    Raises:
        UserError: the file is no image, or the network takes neither one channel nor three.
    """
    channels, height, width = bundle.image_shape
    if channels not in (1, 3):
        raise UserError("image", path, allowed=f"null for a network of {channels} channels", remedy="A file has one or three.")
    try:
        picture = open_rgb(path)
    except DECODE_ERRORS as error:
        raise corrupt(path, error) from error
    if center_crop:
        side = 256 / 224 * height
        ratio = side / min(picture.size)
        picture = picture.resize((round(picture.width * ratio), round(picture.height * ratio)), resample=2)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    elif picture.size != (width, height):
        picture = picture.resize((width, height), resample=2)
    pixels = torch.from_numpy(np.array(picture if channels == 3 else picture.convert("L"), dtype=np.float32))
    pixels = pixels.permute(2, 0, 1) if channels == 3 else pixels[None]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (bundle.mean, bundle.std))
    return ((pixels / 255 - mean) / std)[None]
