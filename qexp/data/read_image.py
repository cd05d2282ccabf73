"""One image file as a network takes it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.config.preprocessing import Preprocessing
from qexp.data.bundle import DataBundle
from qexp.data.folder import DECODE_ERRORS, corrupt, open_rgb
from qexp.data.preprocess import preprocess


def read_image(path: Path, bundle: DataBundle, how: Preprocessing) -> Tensor:
    """A file as a network takes it: [1, C, H, W] float32, resized and normalized.

    Args:
        path: of the file.
        bundle: the data set whose images the network takes.
        how: resize and crop of its images.

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
    pixels = preprocess(picture if channels == 3 else picture.convert("L"), how, (height, width)).float()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (bundle.mean, bundle.std))
    return ((pixels / 255 - mean) / std)[None]
