"""A researcher's own data set, and what a factory may get wrong."""

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.data import DataSettings
from qexp.data.load import load_data

CODE = """
from typing import NamedTuple
import numpy as np
import torch

IMAGES = torch.arange(12 * 2 * 3 * 3).view(12, 2, 3, 3).to(torch.uint8)
LABELS = torch.arange(12) % 4


class Mine(NamedTuple):
    train_images: object
    train_labels: object
    test_images: object
    test_labels: object


def whole():
    return Mine(IMAGES.numpy(), LABELS.numpy().astype("int16"), IMAGES[:5], [3, 2, 1, 0, 0])

def part(root, image_size=None):
    assert root == "here" and image_size == 6
    return {"train_images": IMAGES, "train_labels": LABELS, "class_names": ["a", "b", "c", "d", "e"]}

def returns_list():
    return [IMAGES, LABELS]

def misspelt():
    return {"train_image": IMAGES, "train_labels": LABELS}

def unlabelled():
    return {"train_images": IMAGES}

def floats():
    return {"train_images": IMAGES.float(), "train_labels": LABELS}

def flat():
    return {"train_images": IMAGES[:, 0], "train_labels": LABELS}

def too_few():
    return {"train_images": IMAGES, "train_labels": LABELS[:7]}

def negative():
    return {"train_images": IMAGES, "train_labels": LABELS - 1}

def half_a_test():
    return {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES}

def two_shapes():
    return {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:, :1], "test_labels": LABELS}

def unnamed():
    return {"train_images": IMAGES, "train_labels": LABELS, "class_names": ["a"]}

def channels_last(image_size=None):
    return {"train_images": torch.zeros(12, 8, 8, 3, dtype=torch.uint8), "train_labels": LABELS}

def complex_images():
    return {"train_images": IMAGES.to(torch.complex64), "train_labels": LABELS}

def float_labels():
    return {"train_images": IMAGES, "train_labels": LABELS.float()}

def complex_labels():
    return {"train_images": IMAGES, "train_labels": LABELS.to(torch.complex64)}

def huge_label():
    return {"train_images": IMAGES, "train_labels": torch.tensor([10**9, *LABELS[1:]])}

def sparse():
    return {"train_images": IMAGES.to_sparse(), "train_labels": LABELS}

def without_values():
    return {"train_images": IMAGES.to("meta"), "train_labels": LABELS}

def one_class():
    return {"train_images": IMAGES, "train_labels": LABELS * 0}

def no_pixels():
    return {"train_images": IMAGES[:, :, :0], "train_labels": LABELS}

def ragged():
    return {"train_images": [[1], [2, 3]], "train_labels": LABELS}

def greedy(secret):
    return secret
"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)

    def load(name, **values):
        return load_data(DataSettings(name="custom", factory=f"{tmp_path}/mine.py:{name}", **values))

    return load


def test_arrays_with_a_test_part(load):
    data = load("whole", num_calib=2)
    assert data.split_sizes == {"train": 10, "calib": 2, "select": 0, "test": 5}
    assert data.image_shape == (2, 3, 3) and data.class_names == ("0", "1", "2", "3")
    batch = next(data.eval_batches("test", batch_size=9, device="cpu"))
    assert batch.labels.tolist() == [3, 2, 1, 0, 0] and batch.labels.dtype == torch.int64


def test_arguments_names_and_size(load):
    data = load("part", root="here", image_size=6, num_test=4)
    assert data.num_classes == 5 and data.image_shape == (2, 6, 6) and data.split_sizes["test"] == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("returns_list", "returned list"),
        ("misspelt", "unknown key 'train_image'. Did you mean train_images?"),
        ("unlabelled", "train_labels is missing"),
        ("floats", "train_images is torch.float32"),
        ("flat", r"train_images is torch.uint8 \(12, 3, 3\)"),
        ("too_few", r"train_labels is torch.int64 \(7,\) for 12 images"),
        ("negative", "negative"),
        ("half_a_test", "test_labels is missing"),
        ("two_shapes", "differ in shape"),
        ("unnamed", "labels go up to 3, class_names has 1"),
        ("ragged", "train_images is no tensor or array"),
        ("complex_images", "train_images is torch.complex64"),
        ("float_labels", "train_labels is torch.float32"),
        ("complex_labels", "train_labels is torch.complex64"),
        ("huge_label", "labels go up to 1000000000 in a set of 12 images.*data.num_classes=N"),
        ("sparse", "train_images is a sparse tensor"),
        ("without_values", "train_images is .*without values"),
        ("one_class", "at least 2 classes"),
        ("no_pixels", "train_images is empty"),
        ("greedy", "Give secret a default"),
        ("wohle", "Did you mean whole?"),
    ],
)
def test_refusals(load, name, message):
    with pytest.raises(UserError, match=rf"data.factory=.*{message}"):
        load(name, num_test=2)


@pytest.mark.parametrize("image_size", [None, 16])
def test_channels_that_stand_last_are_refused(load, image_size):
    with pytest.raises(
        UserError, match=r"channels_last: allowed is images \[N, C, H, W\].*\[N, 8, 8, 3\], which reads as 3 channels"
    ):
        load("channels_last", num_test=2, image_size=image_size)


def test_labels_beyond_the_number_of_classes_are_refused(load):
    with pytest.raises(UserError, match=r"labels from 0 to 2\. Those of the train part go from 0 to 3"):
        load("part", root="here", image_size=6, num_test=2, num_classes=3)
