"""Columns of paired statistics: each variant against its float network, and any two rows of a table against each other.

The formulas are `qexp.stats`'s. What needs predictions that were not kept stays empty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator
from functools import lru_cache

import numpy as np
import pandas as pd

from qexp.reporting.frames.predictions import Predictions, StoredPredictions, keys_of
from qexp.reporting.frames.protocol import is_stopped
from qexp.reporting.frames.repeats import is_further_draw, repeats
from qexp.reporting.frames.summary import PAIRED, STATISTICS, is_compared, is_control
from qexp.stats.interval import Interval
from qexp.stats.interval import wilson_ends as ends_of_wilson
from qexp.stats.noninferiority import MARGIN, NonInferiority, non_inferiority
from qexp.stats.paired import compare_counts, mcnemar
from qexp.stats.score import score_interval
from qexp.stats.seeds import hierarchical_bootstrap, paired_over_seeds
from qexp.tracking.record import FLOAT_VARIANT

ALPHA = 0.05
SEED_COLUMNS = ("prec1_low", "prec1_high", "delta_low", "delta_high", "p_seeds")


def with_statistics(records: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    """Add the columns `PAIRED` of each row against its float network (`stored.references_of`), and its Wilson interval.

    `prec1_low`, `prec1_high`: Wilson interval of Prec@1 alone. `ci_low`, `ci_high`: score interval of the difference.
    `p_value`: exact McNemar test. `lost`, `gained`: images that only the float network, only this one gets right.
    `disagreement`: predictions that differ, percent. `loss_bound`: largest loss that the data allow at 95 %, one-sided, points;
    `p_loss`: of a loss of half a point or more; `p_equivalent`: of a difference of that size, whichever way. All of them are
    about a row by itself: what is claimed of a table's rows rests on adjusted ones.

    Args:
        records: of `load_records`.
        stored: of `load_predictions`.
    """
    compared = zip(keys_of(records), is_compared(records).to_list(), stored.references_of(records), strict=True)
    rows = [
        against(stored.by_key.get(reference), stored.by_key.get(key)) if stands and reference is not None else {}
        for key, stands, reference in compared
    ]
    columns = pd.DataFrame(rows, columns=list(PAIRED), index=records.index)
    alone = wilson_ends(records).where(~is_stopped(records)).add_prefix("prec1_")
    return pd.concat([records.drop(columns=list(STATISTICS), errors="ignore"), alone, columns], axis=1)


def against(a: Predictions | None, b: Predictions | None) -> dict[str, object]:
    """`PAIRED` of B against A; nothing where either is missing or they are of other images."""
    if a is None or b is None or a.n != b.n or a.images != b.images:
        return {}
    lost, gained = np.count_nonzero(a.right & ~b.right), np.count_nonzero(~a.right & b.right)
    interval, bound = pair_interval(lost, gained, a.n), _bound(lost, gained, a.n)
    return {
        "ci_low": interval.low,
        "ci_high": interval.high,
        "p_value": float(mcnemar(lost, gained)),
        "lost": lost,
        "gained": gained,
        "disagreement": 100 * np.count_nonzero(a.top1 != b.top1) / a.n,
        "loss_bound": bound.loss_bound,
        "p_loss": bound.p_value,
        "p_equivalent": bound.p_equivalent,
    }


@lru_cache(maxsize=100_000)  # counts decide it, and a sweep has many equal ones
def pair_interval(lost: int, gained: int, n: int) -> Interval:
    """The 95 % interval of a difference, wherever it is shown; not adjusted."""
    return score_interval(lost, gained, n)


@lru_cache(maxsize=100_000)
def _bound(lost: int, gained: int, n: int) -> NonInferiority:
    return non_inferiority(compare_counts(lost, gained, n), margin=MARGIN, alpha=ALPHA)


def wilson_ends(frame: pd.DataFrame) -> pd.DataFrame:
    """`low` and `high` of the interval of each row's `prec1` on its `n` images; both `prec1` itself where a test stopped it."""
    n = frame["n"].to_numpy(dtype=int)
    low, high = ends_of_wilson(np.rint(frame["prec1"].to_numpy(dtype=float) * n / 100).astype(int), n)
    ends = pd.DataFrame({"low": low, "high": high}, index=frame.index)
    return ends.where(~is_stopped(frame), frame["prec1"], axis=0)


def is_tested(table: pd.DataFrame) -> pd.Series:
    """True in the rows that are compared with a float network as a family: of `is_compared`, no controls and no further draws."""
    return is_compared(table) & ~is_control(table) & ~is_further_draw(table)


def row_names(table: pd.DataFrame) -> list[str]:
    """A name for each row of a table: the variant, behind its training where there are several.

    The label of a quantization-aware training, of a float start and of a float control says what its own network is.
    """
    several, roles = table["training"].nunique() > 1, table["role"] if "role" in table else [""] * len(table)
    names = []
    for label, variant, role in zip(table["label"], table["variant"], roles, strict=True):
        label_says_it = role == "qat" if variant != FLOAT_VARIANT else role in ("start", "control")
        names.append(variant if not several else label if label_says_it else f"{label}: {variant}")
    times = Counter(names)
    return [f"{name} #{key[:6]}" if times[name] > 1 else name for name, key in zip(names, table["variant_key"], strict=True)]


def comparable(table: pd.DataFrame, stored: StoredPredictions) -> Iterator[tuple[pd.DataFrame, list[Predictions]]]:
    """The rows that may be compared image by image: the same images of the same data, each training at its last epoch.

    Of data prepared in other ways, where that is asked about, `files` says that they are the same.

    Rows of an unfinished variant stand at an earlier epoch than the others of their training, and are left out.
    """
    last = table["epoch"] == table.groupby(["training", "split", "n"])["epoch"].transform("max")
    groups: dict[Hashable, list[tuple[Hashable, Predictions]]] = {}
    data = "files" if "files" in table else "data_hash"
    for index, key, is_last in zip(table.index, keys_of(table), last, strict=True):
        predictions = stored.by_key.get(key)
        if predictions is not None and is_last:
            groups.setdefault((table.at[index, data], key[3], predictions.images), []).append((index, predictions))
    for members in groups.values():
        yield table.loc[[index for index, _ in members]], [predictions for _, predictions in members]


def seed_intervals(table: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    """What seeds (or draws) and images together leave open, a row per variant that was repeated, as in `seed_table`.

    `prec1_low`, `prec1_high`, `delta_low`, `delta_high`: hierarchical bootstrap over seeds and images; `p_seeds`: paired t test
    of the differences over seeds, two-sided, for these images alone. Differences are against the networks of
    `stored.references_of`.
    """
    rows = []
    for part in (repeat.part for repeat in repeats(table)):
        row = dict.fromkeys(SEED_COLUMNS, math.nan)
        right = _stacked(stored.of(keys_of(part)))
        if right is not None:
            interval = hierarchical_bootstrap(right)[1]
            row |= {"prec1_low": interval.low, "prec1_high": interval.high}
            both = _stacked(
                [*stored.of(keys_of(part)), *(stored.by_key.get(key) if key else None for key in stored.references_of(part))]
            )
            if part["variant"].iloc[0] != FLOAT_VARIANT and both is not None:
                interval = hierarchical_bootstrap(both[: len(part)], both[len(part) :])[1]
                row |= {"delta_low": interval.low, "delta_high": interval.high}
        if part["variant"].iloc[0] != FLOAT_VARIANT:
            delta = part["vs_control"].fillna(part["delta_prec1"]) if "vs_control" in part else part["delta_prec1"]
            p_value = paired_over_seeds(part["prec1"] - delta, part["prec1"]).p_value
            row["p_seeds"] = math.nan if p_value is None else p_value
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SEED_COLUMNS))


def _stacked(predictions: list[Predictions | None]) -> np.ndarray | None:
    """[networks, images] bool, where each is right; None where one is missing or they are of different images."""
    known = [network for network in predictions if network is not None]
    if len(known) < len(predictions) or len({network.images for network in known}) != 1:
        return None
    return np.stack([network.right for network in known])
