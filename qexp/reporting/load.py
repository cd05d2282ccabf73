"""From an experiment's journal to tidy frames: one row per variant and epoch.

Running a sweep again appends the same rows again; the last one of each (run, epoch) wins, with the time of the first where it was
only reused. Rows of other splits or of other numbers of images are other measurements, and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from qexp.base.journal_files import find_journal, read_rows
from qexp.base.nouns import Record

RECORD_COLUMNS = tuple(item.name for item in fields(Record))
IDENTITY = ["run", "variant_key", "epoch", "split", "n"]
# What tells trainings apart; the other parameters are dials of the variants, or say where things lie.
TRAINING_KEYS = ("data.", "model.", "train.", "qat.")
TRAINING_NAMES = ("seed", "deterministic", "checkpoint")
NOT_SETTINGS = ("data.root", "data.download", "data.workers", "data.storage")
# Parameters that a record has under another name.
IN_RECORD = ("name", "policy.name", "quant.name", "quant.weight.granularity", "quant.input", "evaluate.split", *RECORD_COLUMNS)
MAX_LABEL_PARTS = 4


def load_records(name: str, runs_dir: str | Path) -> pd.DataFrame:
    """The records of an experiment, one row per variant and epoch.

    Columns are the fields of `Record`, and:
    `run`: its key; `data`, `model`: names; `planned_epochs`: epochs of the training (None where there was none);
    `label`: what tells the training from the experiment's others (`lr=0.01`), its hash where it is the only one;
    `group`: the label without the seed, equal for the repetitions of a training;
    `param.<key>`: each parameter in which runs differ and that no other column has.

    Raises:
        UserError: no such experiment.
    """
    path = find_journal(runs_dir, name)
    rows = read_rows(path)[0]
    runs = {row["run"]: row for row in rows if row["kind"] == "run"}
    records = _latest(row for row in rows if row["kind"] == "record")
    if not records:
        return pd.DataFrame(columns=[*RECORD_COLUMNS, "run", "data", "model", "planned_epochs", "label", "group"])
    frame = _one_name_each(pd.DataFrame(records))
    labels = training_labels({key: _params(runs, key) for key in dict.fromkeys(frame["training"])})
    frame["label"] = frame["training"].map({key: label for key, (label, _) in labels.items()})
    frame["group"] = frame["training"].map({key: group for key, (_, group) in labels.items()})
    for column in ("data", "model"):
        frame[column] = [_params(runs, training).get(f"{column}.name", "") for training in frame["training"]]
    planned = [(runs.get(training) or {}).get("planned_epochs") for training in frame["training"]]
    frame["planned_epochs"] = pd.array(planned, dtype="Int64")
    return pd.concat([frame, _differing_params(frame["run"], runs)], axis=1)


def load_sweeps(name: str, runs_dir: str | Path) -> list[dict[str, Any]]:
    """What was typed for this experiment and where it ran, oldest first; each sweep once."""
    rows = read_rows(find_journal(runs_dir, name))[0]
    return list({row["sweep"]: row for row in rows if row["kind"] == "sweep"}.values())


def training_labels(params: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Training hash -> (label, label without the seed), short texts made of the settings in which the trainings differ.

    Where the data sets differ their further settings go without saying. Trainings that no setting tells apart (other data under
    the same name, other weights to start from) have the first digits of their hash.

    >>> training_labels({"aa11": {"train.lr": 0.1, "seed": 0}, "bb22": {"train.lr": 0.01, "seed": 0}})
    {'aa11': ('lr=0.1', 'lr=0.1'), 'bb22': ('lr=0.01', 'lr=0.01')}
    """
    keys = sorted({key for values in params.values() for key in values if _is_training_key(key)})
    differ = [key for key in keys if len({repr(values.get(key)) for values in params.values()}) > 1]
    if "data.name" in differ:
        differ = [key for key in differ if not key.startswith("data.") or key == "data.name"]
    # First what and which network, last the seed.
    differ.sort(key=lambda key: (key == "seed", not key.endswith(".name"), key))
    no_seed = [key for key in differ if key != "seed"][:MAX_LABEL_PARTS]
    with_seed = no_seed + [key for key in differ if key == "seed"]

    def text(values: Mapping[str, Any], chosen: list[str]) -> str:
        return " ".join(f"{_short(key, differ)}={_plain(values.get(key))}" for key in chosen)

    labels = {training: text(values, with_seed) for training, values in params.items()}
    groups = {training: text(values, no_seed) for training, values in params.items()}
    alike = list(labels.values())
    found = {}
    for training, label in labels.items():
        if alike.count(label) > 1 or not label:
            mark = training[:6]
            found[training] = (f"{label} {mark}".strip(), f"{groups[training]} {mark}".strip())
        else:
            found[training] = (label, groups[training])
    return found


def _latest(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each measurement, in the order of the first ones."""
    kept: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        identity = tuple(row[key] for key in IDENTITY)
        record = {key: row.get(key) for key in ("run", *RECORD_COLUMNS)}
        if row["reused"] and identity in kept:
            record["time_ms"] = kept[identity]["time_ms"]
        kept[identity] = record
    return list(kept.values())


def _one_name_each(frame: pd.DataFrame) -> pd.DataFrame:
    """Let a label name one variant of a training.

    The same plan under another key was evaluated again by another version of the evaluator: the last evaluation counts. Other
    plans under the same label have the first digits of their plan's hash added.
    """
    place = ["training", "split", "n", "variant"]
    last = frame.groupby([*place, "plan_hash"], sort=False)["variant_key"].transform("last")
    frame = frame[frame["variant_key"] == last].reset_index(drop=True)
    plans = frame.groupby(place, sort=False)["plan_hash"].transform("nunique")
    marked = frame["variant"] + " #" + frame["plan_hash"].str[:6]
    return frame.assign(variant=frame["variant"].where(plans == 1, marked))


def _params(runs: Mapping[str, Mapping[str, Any]], run: str) -> Mapping[str, Any]:
    """The parameters of a run; none where it was never opened."""
    return (runs.get(run) or {}).get("params", {})


def _is_training_key(key: str) -> bool:
    """True for a parameter that decides what a training is."""
    return (key.startswith(TRAINING_KEYS) or key in TRAINING_NAMES) and key not in NOT_SETTINGS


def _differing_params(run_of_row: pd.Series, runs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The parameters in which runs differ, a column each, aligned with the records."""
    used = {run: _params(runs, run) for run in dict.fromkeys(run_of_row)}
    # A training's own run has no dials: only variants can differ in those.
    keys = dict.fromkeys(key for params in used.values() for key in params)
    columns = {}
    for key in keys:
        values = {repr(params[key]) for params in used.values() if key in params}
        if len(values) > 1 and key not in IN_RECORD:
            columns[f"param.{key}"] = [used[run].get(key) for run in run_of_row]
    return pd.DataFrame(columns, index=run_of_row.index)


def _short(key: str, among: Iterable[str]) -> str:
    """A key without its group where that leaves no doubt; `model.name` is `model`.

    >>> _short("train.lr", ["train.lr"]), _short("model.name", [])
    ('lr', 'model')
    """
    group, _, last = key.rpartition(".")
    if last == "name":
        return group
    return key if sum(other.rpartition(".")[2] == last for other in among) > 1 else last


def _plain(value: Any) -> str:
    """A parameter's value as it is typed; a file's name without its folder."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)
