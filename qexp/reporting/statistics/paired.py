"""Columns of paired statistics: each variant against its float network, and any two rows of a table against each other.

The formulas are `qexp.stats`'s. What needs predictions that were not kept stays empty.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd

from qexp.reporting.frames.predictions import (
    Key,
    Measurement,
    Predictions,
    StoredPredictions,
    float_keys,
    keys_of,
    measurement_of,
)
from qexp.reporting.frames.summary import REPEATED, STATISTICS, is_control, is_float
from qexp.stats.family import adjust
from qexp.stats.interval import Interval, wilson
from qexp.stats.noninferiority import MARGIN, NonInferiority, non_inferiority
from qexp.stats.paired import Paired, compare_counts, mcnemar
from qexp.stats.score import score_interval
from qexp.stats.seeds import hierarchical_bootstrap, paired_over_seeds
from qexp.tracking.record import FLOAT_VARIANT

ALPHA = 0.05
MAX_PAIRED = 200  # rows of which all pairs are listed
PAIR_COLUMNS = (
    "a", "b", "difference", "ci_low", "ci_high", "p_value", "p_holm", "lost", "gained", "disagreement", "n", "split", "epoch",
)  # fmt: skip

SEED_COLUMNS = ("prec1_low", "prec1_high", "delta_low", "delta_high", "p_seeds")


def with_statistics(records: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    """Add the columns `PAIRED` of each row against the float network of the same training and epoch, and its Wilson interval.

    `prec1_low`, `prec1_high`: Wilson interval of Prec@1 alone. `ci_low`, `ci_high`: paired bootstrap interval of `delta_prec1`.
    `p_value`: exact McNemar test. `lost`, `gained`: images that only the float network, only this one gets right.
    `disagreement`: predictions that differ, percent. `loss_bound`: largest loss that the data allow at 95 %, one-sided, points;
    `non_inferior`: that is below half a point; `p_loss`: of a loss of half a point or more.

    Args:
        records: of `load_records`.
        stored: of `load_predictions`.
    """
    floats, rows = float_keys(records), []
    for key, variant, prec1 in zip(keys_of(records), records["variant"], records["prec1"], strict=True):
        alone = wilson_of(prec1, key[4])
        row: dict[str, object] = {"prec1_low": alone.low, "prec1_high": alone.high}
        reference = floats.get(measurement_of(key))
        if variant != FLOAT_VARIANT and reference is not None:
            row |= against(stored.by_key.get(reference), stored.by_key.get(key))
        rows.append(row)
    columns = pd.DataFrame(rows, columns=list(STATISTICS), index=records.index)
    return pd.concat([records.drop(columns=list(STATISTICS), errors="ignore"), columns], axis=1)


def against(a: Predictions | None, b: Predictions | None) -> dict[str, object]:
    """`PAIRED` of B against A; nothing where either is missing or they are of other images."""
    if a is None or b is None or a.n != b.n or a.images != b.images:
        return {}
    lost, gained = np.count_nonzero(a.right & ~b.right), np.count_nonzero(~a.right & b.right)
    compared, bound = _compared(lost, gained, a.n)
    return {
        "ci_low": compared.interval.low,
        "ci_high": compared.interval.high,
        "p_value": compared.p_value,
        "lost": lost,
        "gained": gained,
        "disagreement": 100 * np.count_nonzero(a.top1 != b.top1) / a.n,
        "loss_bound": bound.loss_bound,
        "p_loss": bound.p_value,
        "non_inferior": bound.holds,
    }


@lru_cache(maxsize=100_000)
def _compared(lost: int, gained: int, n: int) -> tuple[Paired, NonInferiority]:
    """Counts decide all of it, and a sweep has many equal ones."""
    compared = compare_counts(lost, gained, n)
    return compared, non_inferiority(compared, margin=MARGIN, alpha=ALPHA)


@lru_cache(maxsize=100_000)
def wilson_of(prec1: float, n: int) -> Interval:
    """The interval of one accuracy in percent."""
    return wilson(round(prec1 * n / 100), n)


def is_tested(table: pd.DataFrame) -> pd.Series:
    """True in the rows that are compared with a float network as a family: quantized ones, controls excepted."""
    return ~is_float(table) & ~is_control(table)


def holm(table: pd.DataFrame) -> pd.Series:
    """Holm's adjusted p values over all tested rows of a table, NaN elsewhere."""
    tested = table["p_value"][is_tested(table) & table["p_value"].notna()]
    adjusted = adjust({str(index): float(value) for index, value in tested.items()})
    return pd.Series({index: adjusted[str(index)] for index in tested.index}, dtype=float).reindex(table.index)


def row_names(table: pd.DataFrame) -> list[str]:
    """A name for each row of a table: the variant, behind its training where there are several.

    The label of a quantization-aware training, of a float start and of a float control says what its own network is.
    """
    several, roles = table["training"].nunique() > 1, table["role"] if "role" in table else [""] * len(table)
    names = []
    for label, variant, role in zip(table["label"], table["variant"], roles, strict=True):
        label_says_it = role == "qat" if variant != FLOAT_VARIANT else role in ("start", "control")
        names.append(variant if not several else label if label_says_it else f"{label}: {variant}")
    keys = table["variant_key"]
    return [f"{name} #{key[:6]}" if names.count(name) > 1 else name for name, key in zip(names, keys, strict=True)]


def comparable(table: pd.DataFrame, stored: StoredPredictions) -> Iterator[tuple[pd.DataFrame, list[Predictions]]]:
    """The rows that may be compared image by image: the same images of the same data, each training at its last epoch.

    Rows of an unfinished variant stand at an earlier epoch than the others of their training, and are left out.
    """
    last = table["epoch"] == table.groupby(["training", "split", "n"])["epoch"].transform("max")
    groups: dict[Hashable, list[tuple[Hashable, Predictions]]] = {}
    for index, key, is_last in zip(table.index, keys_of(table), last, strict=True):
        predictions = stored.by_key.get(key)
        if predictions is not None and is_last:
            groups.setdefault((table.at[index, "data_hash"], key[3], predictions.images), []).append((index, predictions))
    for members in groups.values():
        yield table.loc[[index for index, _ in members]], [predictions for _, predictions in members]


def all_pairs(table: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    """Any two rows of a table that are of the same images: b minus a in points.

    Intervals are Tango's score intervals, which hold without flips too; Holm is over all pairs of tested rows and float networks
    of the same images. Of more than `MAX_PAIRED` rows, pairs with a float network or with the most accurate row are listed.
    """
    names = dict(zip(table.index, row_names(table), strict=True))
    parts = []
    for part, predictions in comparable(table, stored):
        if len(part) > 1:
            named = part.assign(name=[names[index] for index in part.index])
            parts.append(_pairs(named, predictions).assign(n=predictions[0].n, split=part["split"].iloc[0]))
    return pd.concat(parts, ignore_index=True)[list(PAIR_COLUMNS)] if parts else pd.DataFrame(columns=list(PAIR_COLUMNS))


def _pairs(part: pd.DataFrame, predictions: list[Predictions]) -> pd.DataFrame:
    """The pairs of rows that are of the same images."""
    n, right = predictions[0].n, np.stack([network.right for network in predictions]).astype(np.float64)
    first, second = np.array(list(combinations(range(len(part)), 2)), dtype=int).T
    only = right @ (1 - right).T  # [rows, rows], images that the row's network gets right and the column's wrong
    lost, gained = only[first, second].astype(int), only[second, first].astype(int)
    frame = pd.DataFrame({"first": first, "second": second, "lost": lost, "gained": gained, "p_value": mcnemar(lost, gained)})
    counted = (~is_control(part)).to_numpy()
    family = frame["p_value"][counted[first] & counted[second]]
    frame["p_holm"] = pd.Series(adjust({str(index): float(p) for index, p in family.items()}), dtype=float).rename(index=int)
    if len(part) > MAX_PAIRED:
        central = is_float(part).to_numpy() | (np.arange(len(part)) == right.sum(1).argmax())
        frame = frame[central[frame["first"]] | central[frame["second"]]]
    epochs, names = part["epoch"].astype(str).to_list(), part["name"].to_list()
    rows = []
    for a, b, down, up in frame[["first", "second", "lost", "gained"]].itertuples(index=False, name=None):
        interval = _score_interval(down, up, n)
        rows.append(
            {
                "a": names[a],
                "b": names[b],
                "difference": 100 * (up - down) / n,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "disagreement": 100 * np.count_nonzero(predictions[a].top1 != predictions[b].top1) / n,
                "epoch": epochs[a] if epochs[a] == epochs[b] else f"{epochs[a]}, {epochs[b]}",
            }
        )
    return pd.concat([frame, pd.DataFrame(rows, index=frame.index)], axis=1)


@lru_cache(maxsize=100_000)
def _score_interval(lost: int, gained: int, n: int) -> Interval:
    return score_interval(lost, gained, n)


def seed_intervals(table: pd.DataFrame, stored: StoredPredictions, references: Mapping[Measurement, Key]) -> pd.DataFrame:
    """What seeds and images together leave open, a row per variant that was trained with several seeds, as in `seed_table`.

    `prec1_low`, `prec1_high`, `delta_low`, `delta_high`: hierarchical bootstrap over seeds and images; `p_seeds`: paired t test
    of the deltas over seeds, two-sided.
    """
    rows = []
    for _, part in table.groupby(REPEATED, sort=False, dropna=False):
        if part["seed"].nunique() < 2:
            continue
        row = dict.fromkeys(SEED_COLUMNS, math.nan)
        right = _stacked(stored.of(keys_of(part)))
        if right is not None:
            interval = hierarchical_bootstrap(right)[1]
            row |= {"prec1_low": interval.low, "prec1_high": interval.high}
            floats = [references.get(measurement_of(key), key) for key in keys_of(part)]
            both = _stacked(stored.of([*keys_of(part), *floats]))
            if part["variant"].iloc[0] != FLOAT_VARIANT and both is not None:
                interval = hierarchical_bootstrap(both[: len(part)], both[len(part) :])[1]
                row |= {"delta_low": interval.low, "delta_high": interval.high}
        if part["variant"].iloc[0] != FLOAT_VARIANT:
            p_value = paired_over_seeds(part["prec1"] - part["delta_prec1"], part["prec1"]).p_value
            row["p_seeds"] = math.nan if p_value is None else p_value
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SEED_COLUMNS))


def _stacked(predictions: list[Predictions | None]) -> np.ndarray | None:
    """[networks, images] bool, where each is right; None where one is missing or they are of different images."""
    known = [network for network in predictions if network is not None]
    if len(known) < len(predictions) or len({network.images for network in known}) != 1:
        return None
    return np.stack([network.right for network in known])
