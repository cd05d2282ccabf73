"""What a reader calls a training: the settings in which it differs from the experiment's others, in as few words as will do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# What distinguishes trainings; the other parameters are settings of the variants, or say where things lie.
TRAINING_KEYS = ("data.", "model.", "train.", "qat.")
TRAINING_NAMES = ("seed", "deterministic", "checkpoint")
NOT_SETTINGS = ("data.root", "data.download", "data.workers", "data.storage")
MAX_LABEL_PARTS = 4
LONG_FRACTION = re.compile(r"\d\.\d{8,}")
LONG_NUMBER = 10  # characters


def training_labels(params: Mapping[str, Mapping[str, object]]) -> dict[str, tuple[str, str]]:
    """Training hash -> (label, label without the seed), short texts made of the settings in which the trainings differ.

    Where the data sets differ their further settings go without saying. Trainings that no setting distinguishes (other data under
    the same name, other weights to start from) have the first digits of their hash.

    >>> training_labels({"aa11": {"train.lr": 0.1, "seed": 0}, "bb22": {"train.lr": 0.01, "seed": 0}})
    {'aa11': ('lr=0.1', 'lr=0.1'), 'bb22': ('lr=0.01', 'lr=0.01')}
    """
    keys = sorted({key for values in params.values() for key in values if is_training_key(key)})
    differ = [key for key in keys if len({repr(values.get(key)) for values in params.values()}) > 1]
    if "data.name" in differ:
        differ = [key for key in differ if not key.startswith("data.") or key == "data.name"]
    # First what and which network, last the seed.
    differ.sort(key=lambda key: (key == "seed", not key.endswith(".name"), key))
    no_seed = [key for key in differ if key != "seed"][:MAX_LABEL_PARTS]
    with_seed = no_seed + [key for key in differ if key == "seed"]

    def text(values: Mapping[str, object], chosen: list[str]) -> str:
        return " ".join(f"{short_key(key, differ)}={value_text(values.get(key))}" for key in chosen)

    labels = {training: text(values, with_seed) for training, values in params.items()}
    groups = {training: text(values, no_seed) for training, values in params.items()}
    alike = list(labels.values())
    pairs = {}
    for training, label in labels.items():
        if alike.count(label) > 1 or not label:
            mark = training[:6]
            pairs[training] = (f"{label} {mark}".strip(), f"{groups[training]} {mark}".strip())
        else:
            pairs[training] = (label, groups[training])
    return pairs


def is_training_key(key: str) -> bool:
    """True for a parameter that decides what a training is."""
    return (key.startswith(TRAINING_KEYS) or key in TRAINING_NAMES) and key not in NOT_SETTINGS


def short_key(key: str, among: Iterable[str]) -> str:
    """A key without its group where that leaves no doubt; `model.name` is `model`.

    >>> short_key("train.lr", ["train.lr"]), short_key("model.name", [])
    ('lr', 'model')
    """
    group, _, last = key.rpartition(".")
    if last == "name":
        return group
    return key if sum(other.rpartition(".")[2] == last for other in among) > 1 else last


def value_text(value: object) -> str:
    """A parameter's value as it is typed; a file's name without its folder."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and len(repr(value)) > LONG_NUMBER:
        return f"{value:.6g}"  # a tenth of 0.05 is 0.005000000000000001
    if isinstance(value, str) and value.startswith("[") and "e" not in value:
        return LONG_FRACTION.sub(lambda digits: f"{float(digits[0]):.6g}", value)  # of a list, such as a mean
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)
