"""The splits of a data set, `train calib select test`: disjoint, cut by a seeded permutation, hashed with the data.

The images of the set's train part are permuted by `split_seed`, interleaved by class, and cut into `test` (only where the set has
no test part of its own), `calib`, `select` and `train`. Interleaving makes every one of these stratified to within an image or
two per class, without a cut per class.
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

Part = Literal["train", "test"]  # the two halves in which data sets are published
PARTS: tuple[Part, Part] = ("train", "test")


class Split(StrEnum):
    """What a set of images may be used for."""

    TRAIN = "train"
    CALIB = "calib"
    SELECT = "select"
    TEST = "test"


@dataclass(frozen=True)
class Splits:
    """Split -> the rows of the set's train or test part that belong to it.

    Args:
        rows: per split [N] int64, in the order of evaluation.
        test_part: the part that `test` indexes; all other splits index the train part.
    """

    rows: Mapping[Split, Tensor]
    test_part: Part

    def part(self, split: Split) -> Part:
        """The part of the set that the rows of `split` index."""
        return self.test_part if split is Split.TEST else "train"

    @property
    def sizes(self) -> dict[str, int]:
        """Split name -> number of images."""
        return {split.value: len(rows) for split, rows in self.rows.items()}


def cut_splits(train_labels: Tensor, num_test_part: int | None, settings: DataSettings) -> Splits:
    """Cut the splits that `settings` asks for.

    Args:
        train_labels: [N] int64, labels of the set's train part.
        num_test_part: images in the set's own test part, which keeps its order; None where it has none.
        settings: `num_*` and `split_seed` are used.

    Raises:
        UserError: no image remains for training, `num_train` exceeds what remains, or `num_test` is missing or out of place.
    """
    if num_test_part is None and settings.num_test is None:
        remedy = "The set has no test part of its own: cut one with data.num_test=N."
        raise UserError("data.num_test", None, allowed="an integer of at least 1", remedy=remedy)
    if num_test_part is not None and settings.num_test is not None:
        remedy = "The set has a test part of its own; evaluate.num_images=N scores a part of it."
        raise UserError("data.num_test", settings.num_test, allowed="null", remedy=remedy)
    num_test = settings.num_test or 0  # 0 where the set has a part of its own
    wanted = {"data.num_test": num_test, "data.num_calib": settings.num_calib, "data.num_select": settings.num_select}
    left = len(train_labels) - sum(wanted.values())
    if left < 1:
        key = max(wanted, key=lambda name: wanted[name])
        most = len(train_labels) - 1 - (sum(wanted.values()) - wanted[key])
        remedy = f"{', '.join(wanted)} take {sum(wanted.values())} of {len(train_labels)} images and leave none to train on."
        raise UserError(key, wanted[key], allowed=f"at most {max(most, 0)}", remedy=remedy)
    if settings.num_train is not None and settings.num_train > left:
        raise UserError("data.num_train", settings.num_train, allowed=f"at most {left}, which the other splits leave")
    order = interleaved_permutation(train_labels, settings.split_seed)
    test, calib, select, train = order.split([num_test, settings.num_calib, settings.num_select, left])
    rows = {Split.TRAIN: train[: settings.num_train], Split.CALIB: calib, Split.SELECT: select}
    if num_test_part is None:
        return Splits({**rows, Split.TEST: test}, "train")
    return Splits({**rows, Split.TEST: torch.arange(num_test_part)}, "test")


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


def representative(num_images: int, limit: int | None) -> Tensor:
    """Positions [min(num_images, limit)] of the images that stand for a split: all, or the first of one fixed permutation."""
    if limit is None or limit >= num_images:
        return torch.arange(num_images)
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(0))[:limit]
