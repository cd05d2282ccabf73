"""What a number was measured on. Numbers of other images, or of images prepared in another way, are no comparison.

Within one protocol networks, seeds, recipes and the amount of training data may differ: that is what tables compare. One
difference between protocols can be asked about, `evaluate.across=preprocessing`: the same files, prepared in other ways. Then
rows of all protocols are compared image by image, and a float network with that of the first protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase

import pandas as pd

from qexp.base.errors import UserError
from qexp.config.data import FILE_KEYS
from qexp.reporting.frames.training_labels import value_text
from qexp.tracking.rows import Scalar

ALWAYS = ("name", "factory", "image_size", "num_classes", "mean", "std")
CUT = {
    "test": ("num_test",),
    "calib": ("num_calib",),
    "select": ("num_calib", "num_select"),
    "train": ("num_calib", "num_select", "num_train"),
}
PARTS = ("num_test", "num_calib", "num_select", "num_train", "split_seed")  # in the data's hash
PREPARING = {*FILE_KEYS, "mean", "std", "image_size"}
MEASURED = ["training", "split", "n"]
ENGINE = ("engine", "computed_by")  # columns of records where some row was not computed by networks as they are
UNTIL = ("until", "num_planned", "decided")  # and where a test stopped evaluations
Measured = tuple[str, str, int, str, str, str]  # `MEASURED`, the data's hash, engine and test of a row
ACROSS = (
    "Rows of the same files, prepared in other ways, stand here side by side, as asked for (evaluate.across=preprocessing). A "
    "float network of another protocol than A is compared with that of A, image by image: what its preprocessing costs. A copy "
    "is compared with the float network of its own protocol: what quantizing costs there. pairs.csv has any two rows."
)
MARKED = "Rows of different protocols stand here side by side, as asked for (mixed=true). Compare within a protocol only."


class MixedProtocolsError(UserError):
    """Records of different protocols would stand in one table.

    Args:
        name: experiment.
        protocols: of its records.
    """

    def __init__(self, name: str, protocols: Protocols) -> None:
        descriptions = protocols.descriptions
        listed = "; ".join(f"{mark}: {text}" for mark, text in descriptions.items())
        remedy = (
            f"It has {len(descriptions)} ({listed}), and their numbers are no comparison. Give one of them another name=, "
            f"or mark them in one table: python -m qexp.report name={name} mixed=true"
        )
        if protocols.only_prepared:
            remedy += (
                ". If they are the same files, evaluate.across=preprocessing in the command of each has them compared image by "
                f"image; it is not in that of {' and '.join(protocols.unasked)}"
            )
        super().__init__("name", name, allowed="an experiment whose evaluations follow one protocol", remedy=remedy)


@dataclass(frozen=True)
class Protocols:
    """Which rows were measured alike.

    Args:
        marks: a letter per row.
        descriptions: letter -> what was measured on; the facts in which protocols differ are named.
        files: 16 hex digits of the files of all of them, where they differ in preprocessing alone and that is asked about.
        references: training -> that of the first protocol with whose float network its own is compared; none without `files`.
        only_prepared: they differ in nothing but how images are prepared.
        unasked: the letters of those that `evaluate.across` was not asked for.
    """

    marks: pd.Series
    descriptions: Mapping[str, str]
    files: str = ""
    references: Mapping[str, str] = field(default_factory=dict)
    only_prepared: bool = False
    unasked: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """For the reader of a table that holds several; empty where there is one."""
        if len(self.descriptions) < 2:
            return ()
        return (ACROSS if self.files else MARKED, *(f"{mark}: {text}." for mark, text in self.descriptions.items()))


def find_protocols(records: pd.DataFrame, params: Mapping[str, Mapping[str, Scalar]]) -> Protocols:
    """Group rows by what they were measured on: data set, preparation of images, split, number of images; and how.

    Data of the same settings with another content (another folder, a changed file) are other data. The hash of the content covers
    training images too, so it is compared among rows of equal `data.num_*` only; how files are prepared is compared among all.

    Args:
        records: of `load_records`.
        params: training -> its parameters.
    """
    rows = records.assign(n=planned_images(records)).reindex(columns=[*MEASURED, "data_hash", "engine", "until"], fill_value="")
    measured = rows.drop_duplicates()
    ways: dict[tuple[tuple[str, str], str], dict[str, Scalar]] = {}  # how the files of one cut became one content
    facts: dict[Measured, dict[str, Scalar]] = {}
    cuts: dict[Measured, tuple[str, str]] = {}
    for key in measured.itertuples(index=False, name=None):
        training, split, n, content, engine, until = key
        settings = params.get(training, {}).items()
        data = {name.removeprefix("data."): value for name, value in settings if name.startswith("data.")}
        facts[key] = {name: data.get(name) for name in _deciding(data, split)} | {
            "split": split,
            "n": n,
            "engine": engine or "eager",
            "until": until,
        }
        cuts[key] = (
            _text(facts[key] | {"split": "", "n": "", "engine": "", "until": ""}),
            _text({name: data.get(name) for name in PARTS}),
        )
        ways.setdefault((cuts[key], content), {name: data.get(name) for name in FILE_KEYS})
    contents, alike = Counter(cut for cut, _ in ways), Counter((cut, _text(way)) for (cut, _), way in ways.items())
    known = {_text(way) for way in ways.values() if any(value is not None for value in way.values())}  # older rows do not say
    for key, cut in cuts.items():
        way = ways[cut, key[3]]
        facts[key] |= way if contents[cut] > 1 or (len(known) > 1 and _text(way) in known) else {}
        facts[key]["content"] = key[3] if alike[cut, _text(way)] > 1 else ""
    text_of = {key: _text(fact) for key, fact in facts.items()}
    protocols = {text_of[key]: fact for key, fact in facts.items()}
    marks = {text: _mark(number) for number, text in enumerate(protocols)}
    texts = [text_of[row] for row in rows.itertuples(index=False, name=None)]
    shown = dict(zip(texts, records["data"], strict=True)) if "data" in records else {}
    descriptions = {
        marks[text]: _description(fact | {"name": shown.get(text) or fact["name"]}, list(protocols.values()))
        for text, fact in protocols.items()
    }
    letters = pd.Series([marks[text] for text in texts], index=records.index, dtype=object)
    first = {key[0]: marks[text] for key, text in text_of.items()}
    differ = {name for fact in facts.values() for name in fact if len({repr(other.get(name)) for other in facts.values()}) > 1}
    unasked = {mark: None for training, mark in first.items() if params.get(training, {}).get("evaluate.across") is None}
    across = _across(first, params, measured)
    return Protocols(letters, descriptions, *across, only_prepared=differ <= PREPARING, unasked=tuple(unasked))


def with_ways(frame: pd.DataFrame) -> pd.DataFrame:
    """Records without the columns of `ENGINE` and `UNTIL` where all rows are of networks as they are, and of all images."""
    empty = [names for names in (ENGINE, UNTIL) if not any(frame[name].any() for name in names)]
    return frame.drop(columns=[name for names in empty for name in names])


def planned_images(frame: pd.DataFrame) -> pd.Series:
    """How many images were to be scored for each row: `n`, unless a test stops evaluations."""
    return frame["num_planned"].where(frame["until"].fillna("") != "", frame["n"]) if "until" in frame else frame["n"]


def is_stopped(frame: pd.DataFrame) -> pd.Series:
    """True in the rows of copies that a test stops: no test or interval of a fixed number of images holds for them."""
    return frame["decided"].fillna("") != "" if "decided" in frame else pd.Series(False, index=frame.index)


def _across(
    letters: Mapping[str, str], params: Mapping[str, Mapping[str, Scalar]], measured: pd.DataFrame
) -> tuple[str, dict[str, str]]:
    """The files that all rows are of and the training that each one is compared with; nothing where that is not asked for.

    Args:
        letters: training -> its protocol.
        params: training -> its parameters.
        measured: split and number of images of each training.
    """
    every = [params.get(training, {}) for training in letters]
    files = {(one.get("evaluate.across"), one.get("evaluate.files")) for one in every}
    across, known = next(iter(files)) if len(files) == 1 else (None, None)
    if across is None or len(set(letters.values())) < 2 or len(measured[["split", "n"]].drop_duplicates()) > 1:
        return "", {}
    of_first = {
        _subject(params[training]): training for training in reversed(list(letters)) if letters[training] == ascii_uppercase[0]
    }
    others = {training: of_first.get(_subject(params[training])) for training in letters}
    return str(known), {one: other for one, other in others.items() if other is not None and letters[one] != ascii_uppercase[0]}


def _subject(params: Mapping[str, Scalar]) -> str:
    """What was evaluated, whatever its images."""
    return _text({key: value for key, value in params.items() if not key.startswith(("data.", "evaluate."))})


def _deciding(data: Mapping[str, Scalar], split: str) -> Sequence[str]:
    """The data settings that decide the images of a split and how a network sees them."""
    if split == "test" and data.get("num_test") is None:  # a part of its own, whatever is cut from the others
        return ALWAYS
    return (*ALWAYS, "num_test", *CUT.get(split, ()), "split_seed")


def _description(facts: Mapping[str, Scalar], protocols: Sequence[Mapping[str, Scalar]]) -> str:
    """`mnist5k, mean 0.1, split test, n = 1000`: name, split and number, and what else distinguishes it from the others."""
    keys = [key for key in dict.fromkeys(key for other in protocols for key in other) if key not in ("name", "split", "n")]
    differ = [key for key in keys if len({repr(other[key]) for other in protocols if key in other}) > 1]
    details = [f"{key} {value_text(facts[key])}" for key in differ if facts.get(key) not in (None, "")]
    return ", ".join([str(facts.get("name") or "data"), *details, f"split {facts['split']}", f"n = {facts['n']}"])


def _text(values: Mapping[str, Scalar]) -> str:
    return repr(sorted(values.items()))


def _mark(number: int) -> str:
    return ascii_uppercase[number] if number < len(ascii_uppercase) else f"P{number + 1}"
