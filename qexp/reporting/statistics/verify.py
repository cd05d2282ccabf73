"""Recompute the numbers of a written table from stored predictions, and say which that was not possible for.

Predictions are looked for beside the table (`predictions.safetensors`, `predictions/<variant_key>.safetensors`) and in the store,
where its record is that of the table, by its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qexp.base.errors import UserError
from qexp.base.files import check_readable
from qexp.base.progress import track
from qexp.base.text import counted
from qexp.config.metrics import ALWAYS, METRICS
from qexp.engine.measures import against as compared_with
from qexp.engine.measures import measure
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import (
    FILE,
    Predictions,
    StoredPredictions,
    float_keys,
    keys_of,
    load_predictions,
    measurement_of,
    read_compact,
    read_predictions,
)
from qexp.reporting.frames.summary import CLAIMS, STATISTICS, is_compared, own_metrics, seed_table
from qexp.reporting.statistics.asked_again import check_asked_tables
from qexp.reporting.statistics.draws import FILE as DRAWS_FILE
from qexp.reporting.statistics.draws import draw_pairs
from qexp.reporting.statistics.paired import against, is_tested, seed_intervals
from qexp.reporting.statistics.pairs import compare_rows
from qexp.reporting.statistics.verdict import best_epoch_rows, pairs_of, with_claims
from qexp.reporting.statistics.verification import Verification
from qexp.stats.interval import wilson
from qexp.tracking.journal import journal_path
from qexp.tracking.record import FLOAT_VARIANT

TEXTS = (
    "training", "label", "variant", "without_draw", "variant_key", "plan_hash", "data_hash", "vs_best", "group", "control",
    "a", "b", "epoch", "files", "compared_with", *(row.name for row in METRICS.values() if row.gives == "text"), "name",
)  # fmt: skip
NEVER = {
    **{row.name: "needs logits" for row in METRICS.values() if row.stored == "never"},
    "size_bytes": "needs the plan",
    "vs_control": "needs the control's predictions of the same epoch",
}
AGAIN = tuple(measure(row) for row in ALWAYS if row.stored != "never")
BOOTSTRAP = ("prec1_low", "prec1_high", "delta_low", "delta_high")
# A table without it has other families, other intervals of pairs, rows against their float start, and not all of the files.
SINCE = "equivalent"
EARLIER = "by an earlier version, by another method: python -m qexp.report name=NAME writes it anew"
PAIR_KEY = ["a", "b", "epoch", "split", "n"]


def verify_tables(name: str, *, runs_dir: str | Path, results_dir: str | Path) -> Verification:
    """Recompute `table.csv`, `epochs.csv`, `seeds.csv`, `pairs.csv` and `draws.csv` of an experiment, committed or not.

    Raises:
        UserError: no such table, none of evaluations, or nothing stored to recompute any number from.
    """
    folder = Path(results_dir) / name
    table = _read(folder / "table.csv")
    left: dict[str, str] = {}
    if table is not None and "p_holm" in table and SINCE not in table:
        left[", ".join(name for name in (*CLAIMS, "ci_low", "ci_high") if name in table)] = EARLIER.replace("NAME", name)
    if table is None or not {"training", "variant_key", "prec1"} <= set(table.columns):
        raise UserError("name", name, allowed=f"a table of evaluations at {folder / 'table.csv'}")
    epochs, seeds, pairs, draws = (_read(folder / file) for file in ("epochs.csv", "seeds.csv", "pairs.csv", DRAWS_FILE))
    if left:
        table, epochs = _as_before(table), None if epochs is None else _as_before(epochs)
        pairs = None if pairs is None else pairs.drop(columns="p_holm")
    stored = _gather(name, folder, Path(runs_dir), table if epochs is None else pd.concat([table, epochs]))
    if not any(key in stored.by_key for key in keys_of(table)):
        where = f"in {folder} or {runs_dir}"
        remedy = "Write the report again where the runs are: it puts predictions.safetensors beside the table."
        raise UserError("verify", name, allowed=f"a table whose predictions are stored {where}", remedy=remedy)
    result = Verification(left=left)
    again = _check_rows(result, "table.csv", table, stored)
    if epochs is not None:
        epochs = _check_rows(result, "epochs.csv", epochs, stored, quiet=True)
    _check_family(result, table, again, stored)
    _check_seeds(result, seeds, again, stored)
    _check_draws(result, draws, again, stored)
    _check_pairs(result, pairs, again, again.head(0) if epochs is None else epochs, stored)
    check_asked_tables(result, folder, table, stored)
    result.left |= {column: why for column, why in NEVER.items() if column in table}
    result.left |= {row.name: "needs logits, and the code of that metric" for row in own_metrics(table)}
    return result


def _as_before(table: pd.DataFrame) -> pd.DataFrame:
    """A table of an earlier version without what was computed by another method."""
    return table.drop(columns=[*CLAIMS, "ci_low", "ci_high", "control"], errors="ignore")


def _read(path: Path) -> pd.DataFrame | None:
    """A table with texts as texts; None where there is none."""
    check_readable(path)
    if not path.exists():
        return None
    frame = pd.read_csv(path, dtype={name: str for name in TEXTS if name != "epoch" or path.name == "pairs.csv"})
    return frame.fillna({name: "" for name in ("vs_best", "label") if name in frame})


def _gather(name: str, folder: Path, runs_dir: Path, rows: pd.DataFrame) -> StoredPredictions:
    """All predictions of these rows that are stored anywhere."""
    gathered = StoredPredictions(floats=float_keys(rows))
    if (folder / FILE).exists():
        compact = read_compact(folder / FILE)
        gathered.by_key.update(compact.by_key)
        gathered.floats.update(compact.floats)
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
        kept = load_predictions(records, runs_dir, log_prob=True)
        gathered.by_key.update({key: whole for key, whole in kept.by_key.items() if _agrees(whole, gathered.by_key.get(key))})
        return replace(gathered, floats=kept.floats | gathered.floats)
    return gathered


def _agrees(whole: Predictions, compact: Predictions | None) -> bool:
    """True unless the compact file holds other classes: it lies beside the table, and is what the table is checked with."""
    return compact is None or (np.array_equal(whole.top1, compact.top1) and np.array_equal(whole.label, compact.label))


def _check_rows(
    result: Verification, file: str, table: pd.DataFrame, stored: StoredPredictions, *, quiet: bool = False
) -> pd.DataFrame:
    """Check each row by itself; returns the table with the numbers that were recomputed."""
    columns = [name for name in (*(one.row.name for one in AGAIN), *STATISTICS) if name in table]
    again = table.astype(dict.fromkeys(columns, float))
    missing = [name for name, key in zip(table["variant"], keys_of(table), strict=True) if key not in stored.by_key]
    if missing:
        few = f"{len(missing)} of {len(table)} rows" + (f": {', '.join(missing[:6])}" if len(missing) <= 6 else "")
        result.left[f"{file}, {few}"] = "no predictions are stored"
    no_loss = 0
    references, compared = stored.references_of(table), is_compared(table)
    lines = list(zip(table.index, keys_of(table), references, compared, strict=True))
    for index, key, reference, stands in track(lines, "row"):
        predictions = stored.by_key.get(key)
        if predictions is None:
            continue
        row, own = table.loc[index], stored.floats.get(measurement_of(key))
        numbers = _alone(predictions)
        if stands:
            own = reference if row["variant"] == FLOAT_VARIANT else own
            of_float = stored.by_key.get(own) if own is not None else None
            numbers |= {} if of_float is None else compared_with(AGAIN, predictions, of_float)
            numbers |= against(stored.by_key.get(reference) if reference is not None else None, predictions)
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
    interval = wilson(int(np.count_nonzero(predictions.right)), predictions.n)
    return numbers | {"n": predictions.n, "prec1_low": interval.low, "prec1_high": interval.high}


def _check_family(result: Verification, table: pd.DataFrame, again: pd.DataFrame, stored: StoredPredictions) -> None:
    """Columns that need all rows together."""
    columns = [name for name in CLAIMS if name in table]
    if not columns:
        return
    family = is_tested(again) & table["p_value"].notna()
    if not all(key in stored.by_key for key in keys_of(again[family])):
        result.left[f"table.csv, {', '.join(columns)}"] = "they belong to all rows, and not all are stored"
        return
    claimed = with_claims(again, compare_rows(again, stored))
    for index in table.index:
        row = f"{table.at[index, 'label']} {table.at[index, 'variant']}"
        for column in columns:
            if family[index] or column == "vs_best":
                result.compare("table.csv", row, column, table.at[index, column], claimed.at[index, column])


def _check_seeds(result: Verification, seeds: pd.DataFrame | None, again: pd.DataFrame, stored: StoredPredictions) -> None:
    """Means, deviations and intervals over seeds."""
    if seeds is None and SINCE not in again:
        return
    means = seed_table(again, (*ALWAYS, *own_metrics(again)))
    means = pd.concat([means, seed_intervals(again, stored)], axis=1)
    if seeds is None:
        _miss(result, "seeds.csv", means)
        return
    if list(means["variant"]) != list(seeds["variant"]):
        result.wrong.append("seeds.csv: its rows are not those of the table")
        return
    numbers = [name for name in means.columns if name in seeds and name.endswith(("_mean", "_sd", "_low", "_high", "p_seeds"))]
    for position, name in enumerate(means["variant"]):
        for column in numbers:
            slack = _slack(seeds.iloc[position], column, int(seeds["n"].iloc[position]))
            result.compare("seeds.csv", name, column, seeds[column].iloc[position], means[column].iloc[position], slack=slack)


def _check_draws(result: Verification, draws: pd.DataFrame | None, again: pd.DataFrame, stored: StoredPredictions) -> None:
    """Comparisons of variants with several draws."""
    if draws is None and SINCE not in again:
        return
    known = draw_pairs(again, stored)
    if draws is None:
        _miss(result, DRAWS_FILE, known)
        return
    if list(zip(known["a"], known["b"], strict=True)) != list(zip(draws["a"], draws["b"], strict=True)):
        result.wrong.append(f"{DRAWS_FILE}: its pairs are not those of the table")
        return
    for old, new in zip(draws.to_dict("records"), known.to_dict("records"), strict=True):
        for column in ("difference", "difference_sd", "ci_low", "ci_high", "p_value", "p_holm"):
            result.compare(DRAWS_FILE, f"{old['a']} and {old['b']}", column, old[column], new[column])


def _check_pairs(
    result: Verification, pairs: pd.DataFrame | None, again: pd.DataFrame, epochs: pd.DataFrame, stored: StoredPredictions
) -> None:
    """Comparisons of any two rows."""
    if pairs is None and SINCE not in again:
        return
    early = best_epoch_rows(epochs, again) if len(epochs) else again.head(0)
    recomputed = pairs_of(again, early, stored)
    if pairs is None:
        _miss(result, "pairs.csv", recomputed)
        return
    known = {tuple(map(str, key)): row for key, row in _by_pair(recomputed)}
    for key, row in _by_pair(pairs):
        other = known.get(tuple(map(str, key)))
        if other is None:
            result.left["pairs.csv, some pairs"] = "no predictions are stored"
            continue
        for column in ("difference", "ci_low", "ci_high", "p_value", "p_holm", "lost", "gained", "disagreement"):
            if column in row:
                result.compare("pairs.csv", f"{key[0]} and {key[1]}", column, row[column], other[column])


def _miss(result: Verification, file: str, recomputed: pd.DataFrame) -> None:
    """Note that a file is not there whose rows the predictions give."""
    if len(recomputed):
        result.wrong.append(f"{file}: it is missing; from the predictions it has {counted(len(recomputed), 'row')}")


def _by_pair(pairs: pd.DataFrame) -> Iterator[tuple[tuple, dict[str, Any]]]:
    rows: Iterable[dict[str, Any]] = pairs.to_dict("records")
    return ((tuple(row[name] for name in PAIR_KEY), row) for row in rows)


def _slack(row: pd.Series, column: str, n: int) -> float:
    """What the draws of a bootstrap may differ by where numpy is another version; its resamples move in steps of one image."""
    if column not in BOOTSTRAP or column in STATISTICS[:2] or pd.isna(row[column]):
        return 0.0
    low, high = (row[column.rpartition("_")[0] + end] for end in ("_low", "_high"))
    return 0.03 * abs(high - low) + 100 / n
