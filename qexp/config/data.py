"""Settings of the data: which images, how they are split and stored; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Le

from qexp.base.checks import Count, Natural, Positive, check_bounds
from qexp.base.errors import UserError

Dataset = Literal[
    "mnist5k", "digits", "cifar10", "cifar100", "fashion_mnist", "mnist", "imagefolder", "imagenet", "fake", "custom"
]  # fmt: skip
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
NEEDS_ROOT = ("cifar10", "cifar100", "fashion_mnist", "mnist", "imagefolder", "imagenet")
HAS_TEST_PART = ("cifar10", "cifar100", "fashion_mnist", "mnist", "imagenet")
STORAGE = {"imagefolder": ("auto", "ram", "stream"), "imagenet": ("auto", "stream")}  # the other sets fit into memory


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images, how they are split, and how training sees them.

    Args:
        name: the data set.
        root: folder of the set, for the sets that lie on disk.
        download: let torchvision fetch the set into `root` if it is not there.
        factory: `module:function` or `file.py:function` for `custom`; see `qexp.data.custom`.
        image_size: height and width in pixels after resizing; None keeps the set's own size.
        num_classes: classes of `fake` (and passed to `custom`); other sets know theirs and take None.
        mean: per channel (or one for all), on the 0-1 scale; None measures it on the train split (streamed: ImageNet's).
        std: standard deviation, given together with the mean.
        augment: what training does to its images; see `qexp.data.augment.Augmentation`.
        num_calib: images set aside for the split `calib`.
        num_select: images set aside for the split `select`.
        num_test: images set aside for the split `test`; only where the set has no test part of its own.
        num_train: use only so many training images (None: all that remain).
        split_seed: seed of the permutation that cuts the splits.
        storage: `ram` decodes once into uint8, `stream` decodes in DataLoader workers; `auto` streams ImageNet-sized sets.
        workers: DataLoader workers of a streamed set, threads of a decoded one.
    """

    name: Dataset
    root: str | None = None
    download: bool = False
    factory: str | None = None
    image_size: Annotated[int, Ge(1), Le(4096)] | None = None
    num_classes: Count | None = None
    mean: list[float] | None = None
    std: list[Positive] | None = None
    augment: Literal["none", "crop", "crop_flip", "resized_crop_flip"] = "none"
    num_calib: Natural = 0
    num_select: Natural = 0
    num_test: Count | None = None
    num_train: Count | None = None
    split_seed: Natural = 0
    storage: Literal["auto", "ram", "stream"] = "auto"
    workers: Annotated[int, Ge(0), Le(256)] = 2

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "data")
        if self.name in NEEDS_ROOT and self.root is None:
            raise UserError("data.root", None, allowed="a folder", remedy=f"data={self.name} needs data.root=FOLDER.")
        if self.name == "custom" and self.factory is None:
            raise UserError("data.factory", None, allowed="module:function or file.py:function")
        if self.name != "custom" and self.factory is not None:
            raise UserError("data.factory", self.factory, allowed="null", remedy="It belongs to data=custom.")
        if self.name not in ("fake", "custom") and self.num_classes is not None:
            raise UserError("data.num_classes", self.num_classes, allowed="null", remedy=f"{self.name} knows its classes.")
        if self.name in HAS_TEST_PART and self.num_test is not None:
            remedy = f"{self.name} has a test part of its own; evaluate.num_images=N scores a part of it."
            raise UserError("data.num_test", self.num_test, allowed="null", remedy=remedy)
        storage = STORAGE.get(self.name, ("auto", "ram"))
        if self.storage not in storage:
            raise UserError("data.storage", self.storage, allowed=storage, remedy=f"This is what data={self.name} can do.")
        if (self.mean is None) != (self.std is None):
            raise UserError("data.mean", self.mean, allowed="given together with data.std")
