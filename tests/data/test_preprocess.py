"""Resize and crop: against torchvision's transforms and, for TensorFlow's crop, against its formula written out."""

import numpy as np
import pytest
import torch
from PIL import Image

from qexp.base.torchvision_compat import torchvision
from qexp.config.preprocessing import Preprocessing
from qexp.data.preprocess import preprocess


def photo(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(40, 31), (31, 40), (32, 32)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_center_is_torchvisions(size, interpolation):
    transforms = torchvision().transforms
    mode = transforms.InterpolationMode[interpolation.upper()]
    image = photo(*size)
    right = transforms.Compose([transforms.Resize(20, mode), transforms.CenterCrop(16), transforms.PILToTensor()])(image)
    assert torch.equal(
        preprocess(image, Preprocessing(image_size=16, resize=20, crop="center", interpolation=interpolation)), right
    )


def test_tensorflow_crops_first():
    """`preprocess_for_eval`: crop = int(size / (size + 32) * shorter side), corner at ((side - crop) + 1) // 2, then a resize."""
    image, side = photo(90, 61), int(24 / (24 + 32) * 61)
    left, top = ((90 - side) + 1) // 2, ((61 - side) + 1) // 2
    right = image.crop((left, top, left + side, top + side)).resize((24, 24), Image.Resampling.BICUBIC)
    ours = preprocess(image, Preprocessing(image_size=24, crop="tensorflow", interpolation="bicubic"))
    assert side == 26 and torch.equal(ours, torch.from_numpy(np.array(right)).permute(2, 0, 1))


def test_without_antialias_pixels_are_sampled():
    """Shrunk to a quarter: bilinear without a filter is the mean of the middle 2 x 2 of each 4 x 4."""
    image = photo(16, 16)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    right = (pixels[:, 1::4, 1::4] + pixels[:, 2::4, 1::4] + pixels[:, 1::4, 2::4] + pixels[:, 2::4, 2::4]) / 4
    ours = preprocess(image, Preprocessing(image_size=4, antialias=False)).float()
    assert (ours - right).abs().max() <= 1
    filtered = preprocess(image, Preprocessing(image_size=4)).float()
    assert (filtered - right).abs().max() > 5


def test_none_squashes_or_leaves():
    image = photo(9, 5)
    assert preprocess(image, Preprocessing()).shape == (3, 5, 9)
    assert preprocess(image, Preprocessing(image_size=4)).shape == (3, 4, 4)
    assert preprocess(image.convert("L"), Preprocessing(), (6, 7)).shape == (1, 6, 7)


def test_another_size_scales_the_resize():
    assert Preprocessing(image_size=224, resize=256, crop="center").resized(112).resize == 128
