"""What is done to the images."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from qexp.config.quant import QuantSettings
from qexp.nn.input_quant import INPUT_QUANTS


def test_settings_name_them():
    assert set(INPUT_QUANTS) == set(get_args(get_type_hints(QuantSettings)["input"]))


@pytest.mark.parametrize("name", INPUT_QUANTS)
def test_shape_and_dtype_stay_and_the_images_too(name):
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    before = images.clone()
    out = INPUT_QUANTS[name](images)
    assert out.shape == images.shape and out.dtype == torch.float32 and torch.equal(images, before)
    expected = {"none": images, "int": images.int().float(), "round": images.round()}[name]
    assert torch.equal(out, expected)
