"""From an experiment's journal to tidy frames: one row per variant and epoch.

Running a sweep again appends the same rows again; the last one of each (run, epoch) wins, with the time of the first where it was
only reused. Rows of other splits or of other numbers of images are other measurements, and stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from qexp.base.label import Label, read_stored_label, told_apart
from qexp.config.metrics import ALWAYS, MetricInfo, restored
from qexp.config.policy import POLICIES
from qexp.reporting.frames.lineage import read_training
from qexp.reporting.frames.plan import plan_of
from qexp.reporting.frames.protocol import find_protocols, with_ways
from qexp.reporting.frames.qat_labels import Named, name_trainings
from qexp.reporting.frames.repeats import with_draws
from qexp.reporting.frames.training_labels import training_labels, value_text
from qexp.tracking.journal import experiment_rows
from qexp.tracking.record import CLASSES_FILE, COLUMNS, FLOAT_VARIANT, METRICS_FILE
from qexp.tracking.row_types import RunRow, SweepRow, is_run, is_sweep
from qexp.tracking.rows import Row, Scalar

ADDED_SINCE = tuple(row.name for row in ALWAYS if row.name not in COLUMNS)  # metrics that older records lack
BLANK = {
    "draw": 0,
    "engine": "",
    "computed_by": "",
    "until": "",
    "num_planned": 0,
    "decided": "",
}  # what records of before do not have
IDENTITY = ["run", "variant_key", "epoch", "split", "n"]
TRAINED = "as trained"  # the ranges of a network that was trained with its quantization
LINEAGE = tuple(item.name for item in fields(Named) if item.name not in ("label", "group"))
# Parameters that a record has under another name.
IN_RECORD = ("name", "policy.name", "quant.name", "quant.weight.granularity", "quant.input", "evaluate.split", *COLUMNS)


def load_records(name: str, runs_dir: str | Path) -> pd.DataFrame:
    """The records of an experiment, one row per variant and epoch.

    Columns are the fields of `Record`, `named` a `Label` in every row, one for each metric that was asked for, and:
    `run`: its key; `data`, `model`: names; `planned_epochs`: epochs of the training (None where there was none);
    `label`: what distinguishes the training from the experiment's others (`lr=0.01`), its hash where it is the only one;
    `group`: the label without the seed, equal for the repetitions of a training;
    where quantization-aware trainings are among them, `LINEAGE` too: the fields of `Named`;
    `draw` and `without_draw`, the variant but for its draw, where there are draws of calibration images (`frames.repeats`);
    `engine` and `computed_by` where some row was not computed by networks as they are;
    `until`, `num_planned` and `decided` where a test stops evaluations: what it is of, how many images there are, what it said;
    `bits` of a policy with widths of its own is their mean, and `widths` says them, where there is such a policy;
    `protocol`, where there are several: a letter for what the row was measured on (`qexp.reporting.frames.protocol`);
    `files`, where protocols are the same files prepared in other ways and that is asked about; `compared_with` in rows of
    float networks then, the training with whose float network it is compared; `delta_prec1` is against that one;
    `param.<key>`: each parameter in which runs differ and that no other column has.

    Raises:
        UserError: no such experiment.
    """
    return records_of(experiment_rows(name, runs_dir))


def records_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The same from the rows of the experiment's journal."""
    runs = {row["run"]: row for row in rows if is_run(row)}
    records = _latest(row for row in rows if row["kind"] == "record")
    if not records:
        return pd.DataFrame(columns=[*COLUMNS, "run", "data", "model", "planned_epochs", "label", "group"])
    # A correction may have had nothing to do after the first epochs: what it did in the last one names the variant.
    last = {(row["run"], row["variant_key"]): row for row in sorted(records, key=lambda row: row["epoch"])}
    label_of = {key: _label(row) for key, row in last.items()}
    named = [label_of[record["run"], record["variant_key"]] for record in records]
    frame = _one_name_each(_framed(records).assign(named=named, variant=[label.text for label in named]))
    frame = with_ways(with_draws(_with_widths(_labelled(frame, runs), runs)))
    for column in ("data", "model"):
        frame[column] = [_params(runs, training).get(f"{column}.name", "") for training in frame["training"]]
    frame["data"] = _labelled_data(frame, runs)
    planned = [runs[training].get("planned_epochs") if training in runs else None for training in frame["training"]]
    frame["planned_epochs"] = pd.array(planned, dtype="Int64")
    protocols = find_protocols(frame, {training: _params(runs, training) for training in frame["training"].unique()})
    if protocols.sentences:
        frame["protocol"] = protocols.marks
    if protocols.files:
        of_float = frame["variant"] == FLOAT_VARIANT
        frame = frame.assign(files=protocols.files, compared_with=frame["training"].map(protocols.references).where(of_float))
        frame["delta_prec1"] = _across_delta(frame)
        if len(protocols.references) == frame["training"].nunique() - 1:  # one network: what it is goes without saying
            labels = {key: _unlike(_params(runs, key), _params(runs, other)) for key, other in protocols.references.items()}
            frame["label"] = frame["group"] = frame["training"].map(labels).fillna("reference")
    return _with_plain_texts(pd.concat([frame, _differing_params(frame["run"], runs)], axis=1))


def load_sweeps(name: str, runs_dir: str | Path) -> list[SweepRow]:
    """What was typed for this experiment and where it ran, oldest first; each sweep once."""
    return sweeps_of(experiment_rows(name, runs_dir))


def sweeps_of(rows: Sequence[Row]) -> list[SweepRow]:
    """The same from the rows of the experiment's journal."""
    return list({row["sweep"]: row for row in rows if is_sweep(row)}.values())


@dataclass(frozen=True)
class AskedFor:
    """What an experiment asked for beside what every evaluation measures.

    Args:
        metrics: rows of the numbers that its records have, ours of every evaluation first.
        more: names of what a report makes: tables and matrices.
        class_names: by label; none where they were not written down.
    """

    metrics: tuple[MetricInfo, ...]
    more: tuple[str, ...]
    class_names: tuple[str, ...]


def load_asked(name: str, runs_dir: str | Path) -> AskedFor:
    """What the runs of an experiment asked for, as they were last opened; numbers that are in records stay."""
    return asked_of(experiment_rows(name, runs_dir))


def asked_of(rows: Sequence[Row]) -> AskedFor:
    """The same from the rows of the experiment's journal."""
    runs = [row for row in rows if is_run(row)]
    described = [row["artifacts"].get(METRICS_FILE, "[]") for row in runs]
    known = {metric.name: metric for text in dict.fromkeys(described) for metric in restored(text)}
    last = {row["run"]: text for row, text in zip(runs, described, strict=True)}
    now = {metric.name: metric for text in dict.fromkeys(last.values()) for metric in restored(text)}
    names = [text for row in runs for text in [row["artifacts"].get(CLASSES_FILE)] if text]
    return AskedFor(
        (*ALWAYS, *(metric for metric in known.values() if metric.in_record)),
        tuple(name for name, metric in now.items() if not metric.in_record),
        tuple(json.loads(names[-1])) if len(set(names)) == 1 else (),
    )


def _latest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last row of each measurement, in the order of the first ones."""
    kept: dict[tuple[object, ...], Mapping[str, Any]] = {}
    identity_of = itemgetter(*IDENTITY)
    for row in rows:
        identity = identity_of(row)
        if row["reused"] and identity in kept:
            row = {**row, "time_ms": kept[identity]["time_ms"]}
        kept[identity] = row
    return list(kept.values())


def _framed(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as a frame, a column for each field, and for each metric that was asked for."""
    names = ("run", *COLUMNS, *ADDED_SINCE)
    columns = zip(*(map(row.get, names) for row in records), strict=True)
    values = {name: list(column) for name, column in zip(names, columns, strict=True)}
    values |= {name: [row.get(name, default) for row in records] for name, default in BLANK.items()}
    asked = dict.fromkeys(name for row in records for name in row.get("extra", ()))
    values |= {name: [row.get("extra", {}).get(name, float("nan")) for row in records] for name in asked}
    return _with_plain_texts(pd.DataFrame(values))


def _with_plain_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose texts are Python's: those of arrow take ten times as long to go through, which reports do often."""
    return frame.astype({name: object for name, dtype in frame.dtypes.items() if dtype == "str"})


def _label(record: Mapping[str, Any]) -> Label:
    """The label of a row; of one that was stored without its parts, they are read from its text."""
    parts = record.get("named")
    if parts is None:
        return read_stored_label(record["variant"])
    weights = None if parts["weights"] is None else tuple(parts["weights"])
    label = Label(parts["way"], weights, tuple(parts["activations"]), tuple(parts["words"]))
    return label.called(parts.get("given"), marks=parts.get("marks", ()))


def _one_name_each(frame: pd.DataFrame) -> pd.DataFrame:
    """Let a label name one variant of a training.

    The same plan under another key was evaluated again by another version of the evaluator: the last evaluation counts. Other
    plans under the same label have the first digits of their plan's hash added. What is the same is said by generated labels;
    a typed one that stands for several has the generated one behind it, in all trainings.
    """
    frame = frame.assign(generated=[label.generated.text for label in frame["named"]])
    columns = [name for name in ("training", "split", "n", "generated", "engine", "until") if name in frame]
    last = frame.groupby([*columns, "plan_hash"], sort=False)["variant_key"].transform("last")
    frame = frame[frame["variant_key"] == last].reset_index(drop=True)
    plans = frame.groupby(columns, sort=False)["plan_hash"].transform("nunique")
    named = [
        label if count == 1 else label.with_word(f"#{plan_hash[:6]}", marks=False)
        for label, count, plan_hash in zip(frame["named"], plans, frame["plan_hash"], strict=True)
    ]
    named = told_apart(named, frame["draw"].to_list())
    return frame.drop(columns="generated").assign(named=named, variant=[label.text for label in named])


def _labelled(frame: pd.DataFrame, runs: Mapping[str, RunRow]) -> pd.DataFrame:
    """Add what trainings are called and, where some quantize, how they belong together."""
    trainings = {key: read_training(key, runs.get(key)) for key in dict.fromkeys(frame["training"])}
    trained = frame[(frame["ranges"] == TRAINED) & (frame["variant"] != FLOAT_VARIANT)].drop_duplicates("training")
    if trained.empty and not any(training.is_qat for training in trainings.values()):
        labels = training_labels({key: _params(runs, key) for key in trainings})
        names = {"label": {key: label for key, (label, _) in labels.items()}}
        names |= {"group": {key: group for key, (_, group) in labels.items()}}
    else:
        rows = zip(trained["training"], trained["named"], trained["run"], strict=True)
        named = name_trainings(trainings, {key: (label, _params(runs, run)) for key, label, run in rows})
        names = {item.name: {key: getattr(words, item.name) for key, words in named.items()} for item in fields(Named)}
    return frame.assign(**{column: frame["training"].map(values) for column, values in names.items()})


def _with_widths(frame: pd.DataFrame, runs: Mapping[str, RunRow]) -> pd.DataFrame:
    """Let `bits` be the mean over elements of what a plan chose, where that is not what the dial says, and add the widths."""
    chosen_of = {
        run: [(row["bits"], row["num_elements"]) for row in plan_of(runs[run]) if row["bits"] and row.get("num_elements")]
        for run in frame["run"].unique()
        if run in runs
    }
    columns = ["run", "policy", "mode", "bits"]
    known = {row: _width(chosen_of.get(row[0], []), *row[1:]) for row in frame[columns].drop_duplicates().itertuples(index=False)}
    both = [known[row] for row in frame[columns].itertuples(index=False, name=None)]
    bits, widths = [width for width, _ in both], [words for _, words in both]
    return frame.assign(bits=bits, widths=widths) if any(widths) else frame


def _width(chosen: Sequence[tuple[int, int]], policy: str, mode: str, bits: int) -> tuple[float, str]:
    """`bits` and `widths` of a run's rows, from the widths that its plan chose with the elements of each."""
    different = {width for width, _ in chosen}
    own = len(different) > 1 and policy in POLICIES and "rules" in POLICIES[policy].reads
    if not chosen or mode == "half" or not (own or bits not in different):
        return bits, ""
    mean = sum(width * count for width, count in chosen) / sum(count for _, count in chosen)
    return round(mean, 2), f"{min(different)}-{max(different)}, mean {mean:.1f}" if len(different) > 1 else f"{mean:g}"


def _across_delta(frame: pd.DataFrame) -> list[float]:
    """`delta_prec1`, that of a float network against the one that it is compared with."""
    floats = frame[frame["variant"] == FLOAT_VARIANT].set_index("training")["prec1"].to_dict()  # one epoch: nothing trained
    rows = zip(frame["compared_with"], frame["prec1"], frame["delta_prec1"], strict=True)
    return [delta if pd.isna(other) else prec1 - floats[other] for other, prec1, delta in rows]


def _unlike(params: Mapping[str, Scalar], reference: Mapping[str, Scalar]) -> str:
    """The settings of the data in which a training is not as its reference: `interpolation=bilinear antialias=false`."""
    differ = [key for key in {**params, **reference} if key.startswith("data.") and params.get(key) != reference.get(key)]
    return " ".join(f"{key.removeprefix('data.')}={value_text(params.get(key))}" for key in differ)


def _labelled_data(frame: pd.DataFrame, runs: Mapping[str, RunRow]) -> list[str]:
    """What people read of the data set of each row; its name too where a label stands for several sets."""
    pairs = [
        (runs[key].get("data_label", "") if key in runs else "", name)
        for key, name in zip(frame["training"], frame["data"], strict=True)
    ]
    names: dict[str, set[str]] = {}
    for label, name in pairs:
        names.setdefault(label or name, set()).add(name)
    return [f"{label} ({name})" if label and len(names[label]) > 1 else label or name for label, name in pairs]


def _params(runs: Mapping[str, RunRow], run: str) -> Mapping[str, Scalar]:
    """The parameters of a run; none where it was never opened."""
    return runs[run].get("params", {}) if run in runs else {}


def _differing_params(run_of_row: pd.Series, runs: Mapping[str, RunRow]) -> pd.DataFrame:
    """The parameters in which runs differ, a column each, aligned with the records."""
    used = {run: _params(runs, run) for run in dict.fromkeys(run_of_row)}
    # A training's own run has no quantization settings: only variants can differ in those.
    keys = dict.fromkeys(key for params in used.values() for key in params)
    columns = {}
    for key in keys:
        values = {repr(params[key]) for params in used.values() if key in params}
        if len(values) > 1 and key not in IN_RECORD:
            columns[f"param.{key}"] = [used[run].get(key) for run in run_of_row]
    return pd.DataFrame(columns, index=run_of_row.index)
