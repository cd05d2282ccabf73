"""Tiny trees of image files."""

import numpy as np
import pytest
from PIL import Image


def write_image(path, seed, size=(8, 8), mode="RGB"):
    """A file of seeded noise; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode=None).save(path)


@pytest.fixture
def tree(tmp_path):
    """`train/{cat,dog}` with 6 images each and `test/{cat,dog}` with 2, 8 x 8 PNG."""
    root = tmp_path / "tree"
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                write_image(root / part / name / f"{number}.png", seed=100 * label + number + (50 if part == "test" else 0))
    return root


@pytest.fixture
def write():
    """The function that writes one image file."""
    return write_image
