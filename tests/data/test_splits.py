"""Splits are disjoint, seeded, stratified, and refuse what cannot be cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.base.errors import UserError
from qexp.config.data import DataSettings
from qexp.data.splits import Split, cut_splits, interleaved_permutation, representative

LABELS = torch.arange(10).repeat_interleave(20)  # sorted by class, as mnist5k and image folders are


def settings(**values):
    return DataSettings(name="digits", **values)


def test_split_is_a_string():
    assert Split("calib") is Split.CALIB and Split.CALIB == "calib" and str(Split.TEST) == "test"


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_disjoint_and_complete(num_test, num_calib, num_select, seed):
    cut = cut_splits({"train": LABELS}, settings(num_test=num_test, num_calib=num_calib, num_select=num_select, split_seed=seed))
    assert cut.sizes == {
        "train": 200 - num_test - num_calib - num_select,
        "calib": num_calib,
        "select": num_select,
        "test": num_test,
    }
    assert torch.equal(torch.cat(list(cut.rows.values())).sort().values, torch.arange(200))


def test_every_split_is_stratified():
    cut = cut_splits({"train": LABELS}, settings(num_test=50, num_calib=20, num_select=30, num_train=40))
    for split, rows in cut.rows.items():
        per_class = torch.bincount(LABELS[rows], minlength=10)
        assert per_class.max() - per_class.min() <= 1, split


def test_unbalanced_classes_keep_their_share():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    order = interleaved_permutation(labels, seed=0)
    assert torch.equal(order.sort().values, torch.arange(100))
    for start in range(0, 90, 10):
        share = int((labels[order[start : start + 10]] == 1).sum())
        assert share in (0, 1, 2)
    assert not torch.equal(order, interleaved_permutation(labels, seed=1))


def test_own_test_part_keeps_its_order():
    cut = cut_splits({"train": LABELS, "test": LABELS[:7]}, settings(num_calib=10))
    assert cut.rows[Split.TEST].tolist() == list(range(7))
    assert cut.part(Split.TEST) == "test" and cut.part(Split.CALIB) == "train"
    assert cut.sizes["train"] == 190
    cut_from_train = cut_splits({"train": LABELS}, settings(num_test=7))
    assert cut_from_train.part(Split.TEST) == "train"


def test_seed_decides():
    parts = {"train": LABELS, "test": LABELS[:5]}
    first, again, other = (cut_splits(parts, settings(num_calib=10, split_seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.rows[Split.CALIB], again.rows[Split.CALIB])
    assert not torch.equal(first.rows[Split.CALIB], other.rows[Split.CALIB])


def test_parts_of_their_own():
    """A tree to evaluate on: no training images, others for calibration; `num_*` takes some of a part, by class in proportion."""
    parts = {"test": LABELS, "calib": LABELS[::2]}
    whole = cut_splits(parts, settings())
    assert whole.sizes == {"train": 0, "calib": 100, "select": 0, "test": 200} and whole.part(Split.CALIB) == "calib"
    some = cut_splits(parts, settings(num_test=30, num_calib=10))
    assert some.sizes == {"train": 0, "calib": 10, "select": 0, "test": 30}
    assert torch.bincount(LABELS[some.rows[Split.TEST]]).tolist() == [3] * 10
    assert some.rows[Split.TEST].tolist() == sorted(some.rows[Split.TEST].tolist())
    everything = cut_splits({"train": LABELS}, settings(num_test=150, num_calib=50))
    assert everything.sizes["train"] == 0  # lawful where nothing trains


@pytest.mark.parametrize("num_test", [None, 20])
def test_without_training_images_select_is_cut_from_the_test_images(num_test):
    cut = cut_splits({"test": LABELS, "calib": LABELS[::2]}, settings(num_select=150, num_test=num_test))
    select, test = cut.rows[Split.SELECT], cut.rows[Split.TEST]
    assert cut.sizes == {"train": 0, "calib": 100, "select": 150, "test": num_test or 50}
    assert cut.part(Split.SELECT) == cut.part(Split.TEST) == "test" and not set(select.tolist()) & set(test.tolist())
    assert torch.bincount(LABELS[select]).tolist() == [15] * 10 and torch.bincount(LABELS[test]).unique().numel() == 1
    whole = cut_splits({"train": LABELS, "test": LABELS[:5]}, settings(num_select=150))
    assert whole.part(Split.SELECT) == "train" and whole.sizes["test"] == 5


def test_refusals():
    train, own = {"train": LABELS}, {"train": LABELS, "test": LABELS[:5]}
    cases = [
        ({"num_test": 201}, train, r"data.num_test=201: allowed is at most 200"),
        ({"num_test": 50, "num_calib": 101, "num_select": 50}, train, r"data.num_calib=101: .*at most 100.*take 201 of 200"),
        ({}, train, r"data.num_test=None.*cut one with data.num_test=N"),
        ({"num_test": 6}, own, r"data.num_test=6: allowed is at most 5"),
        ({"num_train": 191, "num_calib": 10}, own, r"data.num_train=191: allowed is at most 190"),
        ({"num_calib": 1}, {"test": LABELS}, r"data.num_calib=1: allowed is at most 0"),
        ({"num_select": 200}, {"test": LABELS}, r"data.num_select=200: allowed is at most 199"),
        ({"num_select": 150, "num_test": 60}, {"test": LABELS}, r"data.num_test=60: allowed is at most 50"),
    ]
    for values, parts, message in cases:
        with pytest.raises(UserError, match=message):
            cut_splits(parts, settings(**values))


def test_representative_subset():
    reference = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:2000]
    assert torch.equal(representative(10_000, 2000), reference)
    for limit in (None, 5, 6):
        assert representative(5, limit).tolist() == [0, 1, 2, 3, 4]


def test_draws_are_other_images_of_the_split_and_fewer_are_the_first_of_more():
    draws = [representative(500, 50, draw) for draw in range(4)]
    assert torch.equal(draws[0], representative(500, 50)) and all(len(set(rows.tolist())) == 50 for rows in draws)
    assert len({tuple(sorted(rows.tolist())) for rows in draws}) == 4
    assert torch.equal(representative(500, 20, 3), draws[3][:20])
