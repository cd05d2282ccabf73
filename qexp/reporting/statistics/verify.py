"""Recompute the numbers of a written table from stored predictions, and say which that was not possible for.

Predictions are looked for beside the table (`predictions.safetensors`, `predictions/<variant_key>.safetensors`) and in the store,
where its record is that of the table, by its time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qexp.base.errors import UserError
from qexp.config.metrics import ALWAYS, METRICS
from qexp.engine.measures import against as compared_with
from qexp.engine.measures import measure
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import (
    FILE,
    Key,
    Measurement,
    Predictions,
    StoredPredictions,
    float_keys,
    keys_of,
    load_predictions,
    measurement_of,
    read_compact,
    read_predictions,
)
from qexp.reporting.frames.summary import STATISTICS, own_metrics, seed_table
from qexp.reporting.statistics.asked_again import check_asked_tables
from qexp.reporting.statistics.paired import against, holm, is_tested, seed_intervals, wilson_of
from qexp.reporting.statistics.verdict import against_best, best_epoch_rows, pairs_of
from qexp.tracking.journal import journal_path
from qexp.tracking.record import FLOAT_VARIANT

TEXTS = (
    "training", "label", "variant", "variant_key", "plan_hash", "data_hash", "vs_best", "group", "control", "a", "b", "epoch",
    *(row.name for row in METRICS.values() if row.gives == "text"), "name",
)  # fmt: skip
NEVER = {
    **{row.name: "needs logits" for row in METRICS.values() if row.stored == "never"},
    "size_bytes": "needs the plan",
    "vs_control": "needs the control's predictions of the same epoch",
}
AGAIN = tuple(measure(row) for row in ALWAYS if row.stored != "never")
BOOTSTRAP = ("ci_low", "ci_high", "prec1_low", "prec1_high", "delta_low", "delta_high")
PAIR_KEY = ["a", "b", "epoch", "split", "n"]


@dataclass
class Verification:
    """What comparing a table with its stored predictions gave.

    Args:
        equal: (file, column) -> numbers that are as written.
        wrong: numbers that are not, a sentence each.
        left: what was not recomputed, and why.
    """

    equal: dict[tuple[str, str], int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def compare(self, file: str, row: str, column: str, written: Any, recomputed: Any, *, slack: float = 0.0) -> None:
        """Note whether a number is as written, to the digits of a CSV.

        Args:
            file: the table.
            row: what names its row.
            column: of the table.
            written: the number there.
            recomputed: the number from the predictions.
            slack: by how much they may differ.
        """
        if _same(written, recomputed, slack):
            self.equal[file, column] = self.equal.get((file, column), 0) + 1
        else:
            self.wrong.append(f"{file}, {row}: {column} is {_text(written)}, from the predictions {_text(recomputed)}")

    @property
    def lines(self) -> list[str]:
        """For the screen."""
        files = dict.fromkeys(file for file, _ in self.equal)
        counts = {file: [f"{name} {count}" for (other, name), count in self.equal.items() if other == file] for file in files}
        lines = [f"{file}: recomputed and equal: {', '.join(parts)}" for file, parts in counts.items()]
        lines += [f"not recomputed: {what} ({why})" for what, why in self.left.items()]
        lines += [f"WRONG {line}" for line in self.wrong]
        total = sum(self.equal.values())
        if self.wrong:
            return [*lines, f"{total} numbers are equal, {len(self.wrong)} are not"]
        return [*lines, f"{total} numbers are what the stored predictions give"]


def verify_tables(name: str, *, runs_dir: str | Path, results_dir: str | Path) -> Verification:
    """Recompute `table.csv`, `epochs.csv`, `seeds.csv` and `pairs.csv` of an experiment, committed or not.

    Raises:
        UserError: no such table, none of evaluations, or nothing stored to recompute any number from.
    """
    folder = Path(results_dir) / name
    table = _read(folder / "table.csv")
    if table is None or not {"training", "variant_key", "prec1"} <= set(table.columns):
        raise UserError("name", name, allowed=f"a table of evaluations at {folder / 'table.csv'}")
    epochs = _read(folder / "epochs.csv")
    stored, floats = _gather(name, folder, Path(runs_dir), table if epochs is None else pd.concat([table, epochs]))
    if not any(key in stored.by_key for key in keys_of(table)):
        where = f"in {folder} or {runs_dir}"
        remedy = "Write the report again where the runs are: it puts predictions.safetensors beside the table."
        raise UserError("verify", name, allowed=f"a table whose predictions are stored {where}", remedy=remedy)
    result = Verification()
    again = _check_rows(result, "table.csv", table, stored, floats)
    if epochs is not None:
        epochs = _check_rows(result, "epochs.csv", epochs, stored, floats, quiet=True)
    _check_family(result, table, again, stored)
    _check_seeds(result, _read(folder / "seeds.csv"), again, stored, floats)
    _check_pairs(result, _read(folder / "pairs.csv"), again, again.head(0) if epochs is None else epochs, stored)
    check_asked_tables(result, folder, table, stored, floats)
    result.left |= {column: why for column, why in NEVER.items() if column in table}
    result.left |= {row.name: "needs logits, and the code of that metric" for row in own_metrics(table)}
    return result


def _read(path: Path) -> pd.DataFrame | None:
    """A table with texts as texts; None where there is none."""
    if not path.exists():
        return None
    frame = pd.read_csv(path, dtype={name: str for name in TEXTS if name != "epoch" or path.name == "pairs.csv"})
    return frame.fillna({name: "" for name in ("vs_best", "label") if name in frame})


def _gather(name: str, folder: Path, runs_dir: Path, rows: pd.DataFrame) -> tuple[StoredPredictions, dict[Measurement, Key]]:
    """All predictions of these rows that are stored anywhere, and the float networks among them."""
    gathered, floats = StoredPredictions(), float_keys(rows)
    if (folder / FILE).exists():
        compact, compact_floats = read_compact(folder / FILE)
        gathered.by_key.update(compact.by_key)
        floats |= compact_floats
    last = rows["epoch"] == rows.groupby(["training", "variant_key", "split", "n"])["epoch"].transform("max")
    single = rows.groupby("variant_key")["training"].transform("nunique") == 1  # such a file does not name its training
    for key in dict.fromkeys(keys_of(rows[last & single])):
        whole = read_predictions(folder / "predictions" / f"{key[1]}.safetensors", log_prob=True)
        if isinstance(whole, Predictions) and whole.n == key[4] and _agrees(whole, gathered.by_key.get(key)):
            gathered.by_key[key] = whole
    if journal_path(runs_dir, name).exists():
        records = load_records(name, runs_dir)
        times = {(*key, time) for key, time in zip(keys_of(rows), rows["time_ms"], strict=True)}
        same = [(*key, time) in times for key, time in zip(keys_of(records), records["time_ms"], strict=True)]
        records = records[(records["variant"] == FLOAT_VARIANT) | np.array(same, dtype=bool)]
        for key, whole in load_predictions(records, runs_dir, log_prob=True).by_key.items():
            if _agrees(whole, gathered.by_key.get(key)):
                gathered.by_key[key] = whole
        floats = float_keys(records) | floats
    return gathered, floats


def _agrees(whole: Predictions, compact: Predictions | None) -> bool:
    """True unless the compact file holds other classes: it lies beside the table, and is what the table is checked with."""
    return compact is None or (np.array_equal(whole.top1, compact.top1) and np.array_equal(whole.label, compact.label))


def _check_rows(
    result: Verification,
    file: str,
    table: pd.DataFrame,
    stored: StoredPredictions,
    floats: Mapping[Measurement, Key],
    *,
    quiet: bool = False,
) -> pd.DataFrame:
    """Check each row by itself; returns the table with the numbers that were recomputed."""
    columns = [name for name in (*(one.row.name for one in AGAIN), *STATISTICS) if name in table]
    again = table.astype({name: object if name == "non_inferior" else float for name in columns})
    missing = [name for name, key in zip(table["variant"], keys_of(table), strict=True) if key not in stored.by_key]
    if missing:
        few = f"{len(missing)} of {len(table)} rows" + (f": {', '.join(missing[:6])}" if len(missing) <= 6 else "")
        result.left[f"{file}, {few}"] = "no predictions are stored"
    no_loss = 0
    for index, key in zip(table.index, keys_of(table), strict=True):
        predictions = stored.by_key.get(key)
        if predictions is None:
            continue
        row, reference = table.loc[index], floats.get(measurement_of(key))
        float_predictions = stored.by_key.get(reference) if reference is not None else None
        numbers = _alone(predictions) | _beside_float(row, predictions, float_predictions)
        no_loss += predictions.log_prob is None
        for column, value in numbers.items():
            if column in table:
                slack = _slack(row, column, key[4])
                result.compare(file, f"{row['label']} {row['variant']}, epoch {key[2]}", column, row[column], value, slack=slack)
                again.at[index, column] = value
    if no_loss and not quiet:
        result.left[f"{file}, loss of {no_loss} rows"] = "needs log-probabilities, which the compact file has not"
    return again


def _alone(predictions: Predictions) -> dict[str, object]:
    """Numbers of one network."""
    known = ("classes", "log_prob") if predictions.log_prob is not None else ("classes",)
    rows = [one for one in AGAIN if one.row.stored in known and not one.row.needs_reference]
    numbers: dict[str, object] = {one.row.name: one.total(one.columns(predictions, None)) for one in rows}
    interval = wilson_of(100 * int(np.count_nonzero(predictions.right)) / predictions.n, predictions.n)
    return numbers | {"n": predictions.n, "prec1_low": interval.low, "prec1_high": interval.high}


def _beside_float(row: pd.Series, predictions: Predictions, of_float: Predictions | None) -> dict[str, object]:
    """Numbers against the float network."""
    if of_float is None or row["variant"] == FLOAT_VARIANT:
        return {}
    return {**compared_with(AGAIN, predictions, of_float), **against(of_float, predictions)}


def _check_family(result: Verification, table: pd.DataFrame, again: pd.DataFrame, stored: StoredPredictions) -> None:
    """Columns that need all rows together."""
    if "p_holm" not in table:
        return
    family = is_tested(again) & table["p_value"].notna()
    if not all(key in stored.by_key for key in keys_of(again[family])):
        result.left["table.csv, p_holm and vs_best"] = "they belong to all rows, and not all are stored"
        return
    vs_best = against_best(again, stored)[0]
    for index, value in holm(again).items():
        row = f"{table.at[index, 'label']} {table.at[index, 'variant']}"
        if family[index]:
            result.compare("table.csv", row, "p_holm", table.at[index, "p_holm"], value)
        result.compare("table.csv", row, "vs_best", table.at[index, "vs_best"], vs_best[index])


def _check_seeds(
    result: Verification,
    seeds: pd.DataFrame | None,
    again: pd.DataFrame,
    stored: StoredPredictions,
    floats: Mapping[Measurement, Key],
) -> None:
    """Means, deviations and intervals over seeds."""
    if seeds is None:
        return
    means = seed_table(again, (*ALWAYS, *own_metrics(again)))
    means = pd.concat([means, seed_intervals(again, stored, floats)], axis=1)
    if list(means["variant"]) != list(seeds["variant"]):
        result.wrong.append("seeds.csv: its rows are not those of the table")
        return
    numbers = [name for name in means.columns if name in seeds and name.endswith(("_mean", "_sd", "_low", "_high", "p_seeds"))]
    for position, name in enumerate(means["variant"]):
        for column in numbers:
            slack = _slack(seeds.iloc[position], column, int(seeds["n"].iloc[position]))
            result.compare("seeds.csv", name, column, seeds[column].iloc[position], means[column].iloc[position], slack=slack)


def _check_pairs(
    result: Verification, pairs: pd.DataFrame | None, again: pd.DataFrame, epochs: pd.DataFrame, stored: StoredPredictions
) -> None:  # fmt: skip
    """Comparisons of any two rows."""
    if pairs is None:
        return
    early = best_epoch_rows(epochs, again) if len(epochs) else again.head(0)
    known = {tuple(map(str, key)): row for key, row in _by_pair(pairs_of(again, early, stored))}
    for key, row in _by_pair(pairs):
        other = known.get(tuple(map(str, key)))
        if other is None:
            result.left["pairs.csv, some pairs"] = "no predictions are stored"
            continue
        for column in ("difference", "ci_low", "ci_high", "p_value", "p_holm", "lost", "gained", "disagreement"):
            result.compare("pairs.csv", f"{key[0]} and {key[1]}", column, row[column], other[column])


def _by_pair(pairs: pd.DataFrame) -> Iterator[tuple[tuple, dict[str, Any]]]:
    rows: Iterable[dict[str, Any]] = pairs.to_dict("records")
    return ((tuple(row[name] for name in PAIR_KEY), row) for row in rows)


def _slack(row: pd.Series, column: str, n: int) -> float:
    """What the draws of a bootstrap may differ by where numpy is another version; its resamples move in steps of one image."""
    if column not in BOOTSTRAP or column in STATISTICS[:2] or pd.isna(row[column]):
        return 0.0
    low, high = (row[column.rpartition("_")[0] + end] for end in ("_low", "_high"))
    return 0.03 * abs(high - low) + 100 / n


def _same(written: Any, recomputed: Any, slack: float) -> bool:
    if isinstance(written, str) or isinstance(recomputed, str) or isinstance(written, bool):
        return str(written) == str(recomputed)
    if pd.isna(written) or pd.isna(recomputed):
        return bool(pd.isna(written) and pd.isna(recomputed))
    return math.isclose(float(written), float(recomputed), rel_tol=1e-6, abs_tol=max(1e-9, slack))


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
