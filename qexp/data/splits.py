"""The splits of a data set, `train calib select test`: disjoint, cut by a seeded permutation, hashed with the data.

The images of the set's train part are permuted by `split_seed`, interleaved by class, and cut into `test` and `calib` (only where
the set has no part of its own for them), `select` and `train`. Interleaving makes every one of these stratified to within an
image or two per class, without a cut per class. Of a set without a train part, one to evaluate on, `select` is cut from its test
images in the same way, and `test` is the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.config.data import DataSettings

Part = Literal["train", "test", "calib"]  # as data sets are published; few have images for calibration apart
PARTS: tuple[Part, Part] = ("train", "test")  # of torchvision's


class Split(StrEnum):
    """What a set of images may be used for."""

    TRAIN = "train"
    CALIB = "calib"
    SELECT = "select"
    TEST = "test"


_PARTS_OF_SPLITS: Mapping[Split, Part] = {Split.TEST: "test", Split.CALIB: "calib"}


@dataclass(frozen=True)
class Splits:
    """Split -> the rows of the part of the set that belong to it.

    Args:
        rows: per split [N] int64, in the order of evaluation.
        own_parts: splits that index another part than the train part.
    """

    rows: Mapping[Split, Tensor]
    own_parts: Mapping[Split, Part]

    def part(self, split: Split) -> Part:
        """The part of the set that the rows of `split` index."""
        return self.own_parts.get(split, "train")

    @property
    def sizes(self) -> dict[str, int]:
        """Split name -> number of images."""
        return {split.value: len(rows) for split, rows in self.rows.items()}


def cut_splits(labels: Mapping[Part, Tensor], settings: DataSettings) -> Splits:
    """Cut the splits that `settings` asks for.

    A split with a part of its own takes all of that, or `num_*` images of it, by class in proportion and in the part's order.

    Args:
        labels: part of the set -> [N] int64, the labels of its images; a set without a train part is one to evaluate on, whose
            test images give `select`.
        settings: `num_*` and `split_seed` are used.

    Raises:
        UserError: the splits take more images than there are, or there is nothing to test on.
    """
    own: dict[Split, Part] = {split: part for split, part in _PARTS_OF_SPLITS.items() if part in labels}
    asked = {Split.TEST: settings.num_test, Split.CALIB: settings.num_calib or None, Split.SELECT: settings.num_select or None}
    if Split.TEST not in own and settings.num_test is None:
        remedy = "The set has no test part of its own: cut one with data.num_test=N."
        raise UserError("data.num_test", None, allowed="an integer of at least 1", remedy=remedy)
    rows = {split: _own_rows(split, labels[part], asked[split], settings.split_seed) for split, part in own.items()}
    train = labels.get("train", torch.empty(0, dtype=torch.int64))
    if not len(train) and Split.TEST in own and settings.num_select:
        rows |= _of_test(labels["test"], settings)
        own |= {Split.SELECT: "test"}
    cut = {split: count or 0 for split, count in asked.items() if split not in own}
    left = len(train) - sum(cut.values())
    if left < 0 or (settings.num_train is not None and settings.num_train > left):
        raise _too_many(cut, len(train), settings)
    order = interleaved_permutation(train, settings.split_seed)
    *parts, rest = order.split([*cut.values(), left])
    rows |= dict(zip(cut, parts, strict=True)) | {Split.TRAIN: rest[: settings.num_train]}
    return Splits({split: rows[split] for split in (Split.TRAIN, Split.CALIB, Split.SELECT, Split.TEST)}, own)


def _own_rows(split: Split, labels: Tensor, count: int | None, seed: int) -> Tensor:
    """All rows of a split's own part, or `count` of them."""
    if count is None:
        return torch.arange(len(labels))
    if count > len(labels):
        raise UserError(f"data.num_{split}", count, allowed=f"at most {len(labels)}, the images there")
    return interleaved_permutation(labels, seed)[:count].sort().values


def _of_test(labels: Tensor, settings: DataSettings) -> dict[Split, Tensor]:
    """`select` of the test images, and the `test` that is left or that is asked for of it."""
    count, left = settings.num_select, len(labels) - settings.num_select
    if (settings.num_test or 1) > left:
        key, most = ("data.num_test", left) if settings.num_test and left > 0 else ("data.num_select", len(labels) - 1)
        remedy = f"There is no train/ here: both are cut from the {len(labels)} test images."
        raise UserError(key, settings.num_test if key == "data.num_test" else count, allowed=f"at most {most}", remedy=remedy)
    select, rest = interleaved_permutation(labels, settings.split_seed).split([count, left])
    return {Split.SELECT: select, Split.TEST: rest[: settings.num_test].sort().values}


def _too_many(cut: Mapping[Split, int], count: int, settings: DataSettings) -> UserError:
    """The error for splits that take more training images than there are."""
    wanted = {f"data.num_{split}": number for split, number in cut.items()} | {"data.num_train": settings.num_train or 0}
    key = max(wanted, key=lambda name: wanted[name])
    most = count - (sum(wanted.values()) - wanted[key])
    remedy = f"{', '.join(wanted)} take {sum(wanted.values())} of {count} training images."
    remedy += "" if count else " There is no train/ here: give them 0."
    return UserError(key, wanted[key], allowed=f"at most {max(most, 0)}", remedy=remedy)


def interleaved_permutation(labels: Tensor, seed: int) -> Tensor:
    """A seeded permutation of which every run of consecutive entries holds each class in proportion.

    The k-th of the n_c permuted images of class c is placed at (k + 1/2) / n_c.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[interleaved_permutation(labels, seed=3)].tolist()
    [0, 1, 0, 0, 1, 0]
    """
    permutation = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    permuted = labels[permutation]
    by_class = torch.argsort(permuted, stable=True)
    counts = torch.bincount(permuted)
    starts = counts.cumsum(0) - counts
    rank = torch.empty(len(labels), dtype=torch.float64)
    rank[by_class] = (torch.arange(len(labels)) - starts[permuted[by_class]]).double()
    position = (rank + 0.5) / counts[permuted]
    return permutation[torch.argsort(position, stable=True)]


def representative(num_images: int, limit: int | None, draw: int = 0) -> Tensor:
    """Positions [min(num_images, limit)] of the images that stand for a split: all, or the first of a permutation.

    Args:
        num_images: of the split.
        limit: how many are wanted; None takes all.
        draw: seed of the permutation. Of one draw, fewer images are the first of more.

    >>> representative(10, 3).tolist(), representative(10, 3, draw=1).tolist(), representative(3, None).tolist()
    ([4, 1, 7], [5, 6, 1], [0, 1, 2])
    """
    if limit is None or limit >= num_images:
        return torch.arange(num_images)
    return permuted(num_images, draw)[:limit]


def permuted(num_images: int, draw: int = 0) -> Tensor:
    """All positions [num_images] in the order of a draw, which knows nothing of the images.

    Args:
        num_images: of the split.
        draw: seed of the permutation.
    """
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(draw))
