"""What a number was measured on. Numbers of other images, or of images prepared in another way, are no comparison.

Within one protocol networks, seeds, recipes and the amount of training data may differ: that is what tables compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import pandas as pd

from qexp.base.errors import UserError
from qexp.reporting.frames.training_labels import plain

ALWAYS = ("name", "factory", "image_size", "num_classes", "mean", "std")
CUT = {
    "test": ("num_test",),
    "calib": ("num_calib",),
    "select": ("num_calib", "num_select"),
    "train": ("num_calib", "num_select", "num_train"),
}
PARTS = ("num_test", "num_calib", "num_select", "num_train", "split_seed")  # in the data's hash
PLACE = ["training", "split", "n"]
MARKED = "Rows of different protocols stand here side by side, as asked for (mixed=true). Compare within a protocol only."


class MixedProtocolsError(UserError):
    """Records of different protocols would stand in one table."""

    def __init__(self, name: str, told: Mapping[str, str]) -> None:
        found = "; ".join(f"{mark}: {text}" for mark, text in told.items())
        remedy = (
            f"It has {len(told)} ({found}), and their numbers are no comparison. Give one of them another name=, or mark them in "
            f"one table: python -m qexp.report name={name} mixed=true"
        )
        super().__init__("name", name, allowed="an experiment whose evaluations follow one protocol", remedy=remedy)


@dataclass(frozen=True)
class Protocols:
    """Which rows were measured alike.

    Args:
        marks: a letter per row.
        told: letter -> what was measured on; the facts in which protocols differ are named.
    """

    marks: pd.Series
    told: Mapping[str, str]

    @property
    def sentences(self) -> tuple[str, ...]:
        """For the reader of a table that holds several; empty where there is one."""
        return (MARKED, *(f"{mark}: {text}." for mark, text in self.told.items())) if len(self.told) > 1 else ()


def find_protocols(records: pd.DataFrame, params: Mapping[str, Mapping[str, Any]]) -> Protocols:
    """Tell apart what rows were measured on: the data set and how its images are prepared, the split, the number of images.

    Data of the same settings with another content (another folder, a changed file) are other data. The hash of the content covers
    training images too, so it is compared among rows of equal `data.num_*` only.

    Args:
        records: of `load_records`.
        params: training -> its parameters.
    """
    places = records[[*PLACE, "data_hash"]].drop_duplicates()
    contents: dict[tuple, set[str]] = {}
    facts, cuts = {}, {}
    for training, split, n, content in places.itertuples(index=False):
        place = (training, split, n, content)
        data = {key.removeprefix("data."): value for key, value in params.get(training, {}).items() if key.startswith("data.")}
        facts[place] = {key: data.get(key) for key in _deciding(data, split)} | {"split": split, "n": n}
        cuts[place] = (_text(facts[place] | {"split": "", "n": ""}), _text({key: data.get(key) for key in PARTS}))
        contents.setdefault(cuts[place], set()).add(content)
    for place, cut in cuts.items():
        facts[place]["content"] = place[-1] if len(contents[cut]) > 1 else ""
    kinds = {_text(each): each for each in facts.values()}
    marks = {text: _mark(number) for number, text in enumerate(kinds)}
    rows = records[[*PLACE, "data_hash"]].itertuples(index=False, name=None)
    told = {marks[text]: _told(each, list(kinds.values())) for text, each in kinds.items()}
    return Protocols(pd.Series([marks[_text(facts[row])] for row in rows], index=records.index, dtype=object), told)


def _deciding(data: Mapping[str, Any], split: str) -> Sequence[str]:
    """The data settings that decide the images of a split and how a network sees them."""
    if split == "test" and data.get("num_test") is None:  # a part of its own, whatever is cut from the others
        return ALWAYS
    return (*ALWAYS, "num_test", *CUT.get(split, ()), "split_seed")


def _told(facts: Mapping[str, Any], kinds: Sequence[Mapping[str, Any]]) -> str:
    """`mnist5k, mean 0.1, split test, n = 1000`: name, split and number, and what else tells it from the others."""
    keys = [key for key in dict.fromkeys(key for each in kinds for key in each) if key not in ("name", "split", "n")]
    differ = [key for key in keys if len({repr(each[key]) for each in kinds if key in each}) > 1]
    more = [f"{key} {plain(facts[key])}" for key in differ if facts.get(key) not in (None, "")]
    return ", ".join([str(facts.get("name") or "data"), *more, f"split {facts['split']}", f"n = {facts['n']}"])


def _text(values: Mapping[str, Any]) -> str:
    return repr(sorted(values.items()))


def _mark(number: int) -> str:
    return ascii_uppercase[number] if number < len(ascii_uppercase) else f"P{number + 1}"
