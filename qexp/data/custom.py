"""A researcher's own data set: `data=custom data.factory=package.module:function` (or `file.py:function`).

The contract. The function is called with those of `root`, `download`, `image_size` and `num_classes` (as configured) that it
takes. It returns a mapping or a NamedTuple with

- `train_images`: uint8 [N, C, H, W], a torch tensor or a numpy array; `train_labels`: integers [N], 0 to num_classes - 1;
- optionally `test_images` and `test_labels`, both or neither; without them `data.num_test=N` cuts a test split;
- optionally `class_names`, a sequence of strings; otherwise the classes are numbered.

It must be deterministic. Its content is part of the data's fingerprint, hence of every training hash. Rejected: torch Datasets,
which hide their randomness and their order; larger sets lie on disk and are read with `data=imagefolder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qexp.base.errors import UserError, nearest
from qexp.base.user_code import call_factory
from qexp.config.data import DataSettings
from qexp.data.ram import RamImages, RamPart
from qexp.data.splits import Part

_KEY = "data.factory"
_OFFERED = ("root", "download", "image_size", "num_classes")
_RETURNED = ("train_images", "train_labels", "test_images", "test_labels", "class_names")


def load_custom(settings: DataSettings) -> RamImages:
    """Call the factory and hold what it returns to the contract.

    Raises:
        UserError: the factory is not found, cannot be called that way, or returns something else.
    """
    factory = settings.factory
    assert factory is not None, "checked with the settings"
    returned = call_factory(_KEY, factory, offered={name: getattr(settings, name) for name in _OFFERED})
    values = _as_mapping(factory, returned)
    parts: dict[Part, RamPart] = {"train": _part(factory, values, "train")}
    if values.get("test_images") is not None or values.get("test_labels") is not None:
        parts["test"] = _part(factory, values, "test")
    same = slice(1, None) if settings.image_size is None else slice(1, 2)  # what is not made alike
    shapes = {tuple(part.images.shape[same]) for part in parts.values()}
    if len(shapes) > 1:
        raise _unfit(factory, f"train and test images differ in shape: {sorted(shapes)}")
    num_classes = 1 + max(int(part.labels.max()) for part in parts.values())
    names, num_images = values.get("class_names"), sum(len(part.labels) for part in parts.values())
    if names is None and num_classes > max(num_images, settings.num_classes or 0):
        what = f"labels go up to {num_classes - 1} in a set of {num_images} images"
        raise _unfit(factory, f"{what}; where there are so many classes, class_names or data.num_classes=N says so")
    names = tuple(str(number) for number in range(num_classes)) if names is None else tuple(str(name) for name in names)
    if len(names) < num_classes:
        raise _unfit(factory, f"labels go up to {num_classes - 1}, class_names has {len(names)} entries")
    return RamImages(parts, names)


def _as_mapping(factory: str, returned: object) -> Mapping[str, Any]:
    """What the factory returned, by key."""
    values = returned._asdict() if hasattr(returned, "_asdict") else returned
    if not isinstance(values, Mapping):
        raise _unfit(factory, f"it returned {type(returned).__name__}, not a mapping or NamedTuple")
    for key in values:
        if key not in _RETURNED:
            raise _unfit(factory, f"it returned an unknown key {key!r}. {nearest(str(key), _RETURNED)}".rstrip())
    return values


def _part(factory: str, values: Mapping[str, Any], name: Part) -> RamPart:
    """Images and labels of one part, checked."""
    arrays: dict[str, Tensor] = {}
    for key in (f"{name}_images", f"{name}_labels"):
        if values.get(key) is None:
            raise _unfit(factory, f"{key} is missing")
        try:
            arrays[key] = torch.as_tensor(values[key])
        except (TypeError, ValueError, RuntimeError) as error:
            raise _unfit(factory, f"{key} is no tensor or array: {error}") from error
    for key, array in arrays.items():
        if array.layout != torch.strided or array.is_meta:
            raise _unfit(factory, f"{key} is a sparse tensor, or one without values")
    images, labels = arrays.values()
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise _unfit(factory, f"{name}_images is {images.dtype} {tuple(images.shape)}")
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or not integers or len(labels) != len(images):
        raise _unfit(factory, f"{name}_labels is {labels.dtype} {tuple(labels.shape)} for {len(images)} images")
    labels = labels.long()
    if images.numel() == 0:
        raise _unfit(factory, f"{name}_images is empty: {tuple(images.shape)}")
    if int(labels.min()) < 0:
        raise _unfit(factory, f"{name}_labels has a negative one, {int(labels.min())}")
    return RamPart(images.contiguous(), labels)


def _unfit(factory: str, what: str) -> UserError:
    """The error for a factory that breaks the contract."""
    contract = "a function that returns train_images uint8 [N, C, H, W], train_labels [N], as qexp/data/custom.py describes"
    return UserError(_KEY, factory, allowed=contract, remedy=f"Here {what}.")
