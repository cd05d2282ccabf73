"""Classes one by one: what each lost, and what is predicted in place of what the float network says.

Made of stored predictions when a report is written (rows `per_class` and `confusion` of `qexp.config.metrics`), so that they can
be had of runs that are long done, and need no evaluation anew. A mean over all images hides a class that is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd

from qexp.reporting.frames.compared import Compared, Matrix
from qexp.stats.interval import Interval
from qexp.stats.score import score_interval

MAX_CLASSES = 20  # of a matrix that can be read
LEVEL = 0.95


def per_class(compared: Sequence[Compared], class_names: Sequence[str]) -> pd.DataFrame:
    """A row for each class of each network: `n` images, Prec@1 of it and of its float network, and the difference in points.

    `low` and `high` hold the differences of all C classes at once with a probability of 95 %: each is Tango's score interval,
    which holds with few flips and with none, at level 1 - 0.05/C (Bonferroni). So they also hold for the class that is picked
    for having lost most. Its difference itself is that of the most unlucky of C, and overstates what it lost.

    Classes stand by what they lost, the most first; those of a float network by their Prec@1.

    Args:
        compared: networks beside their float networks.
        class_names: by label; a class beyond them is called by its number.
    """
    return pd.DataFrame([row for pair in compared for row in _classes(pair, class_names)], columns=list(COLUMNS))


COLUMNS = (
    "training", "label", "variant", "variant_key", "split", "epoch", "class", "name", "n", "prec1", "float_prec1", "delta_prec1",
    "low", "high", "lost", "gained",
)  # fmt: skip


def _classes(pair: Compared, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one network."""
    labels, this, that = pair.this.label, pair.this.right, None if pair.reference is None else pair.reference.right
    classes = [int(number) for number in np.unique(labels)]
    rows = []
    for number in classes:
        of_class = labels == number
        n, right = int(np.count_nonzero(of_class)), int(np.count_nonzero(this & of_class))
        row: dict[str, Any] = {
            **pair.named,
            "class": number,
            "name": name_of(number, class_names),
            "n": n,
            "prec1": 100 * right / n,
        }
        if that is not None:
            lost, gained = (int(np.count_nonzero(flips & of_class)) for flips in (that & ~this, this & ~that))
            interval = _interval(lost, gained, n, 1 - (1 - LEVEL) / len(classes))
            row |= {"float_prec1": 100 * (right + lost - gained) / n, "delta_prec1": 100 * (gained - lost) / n}
            row |= {"low": interval.low, "high": interval.high, "lost": lost, "gained": gained}
        rows.append(row)
    return sorted(rows, key=lambda row: row.get("delta_prec1", row["prec1"]))


@lru_cache(maxsize=100_000)
def _interval(lost: int, gained: int, n: int, level: float) -> Interval:
    """Counts decide all of it, and many classes have equal ones."""
    return score_interval(lost, gained, n, level=level)


def name_of(number: int, class_names: Sequence[str]) -> str:
    """What a class is called.

    >>> name_of(1, ("cat", "dog")), name_of(2, ("cat", "dog")), name_of(-1, ())
    ('dog', '2', 'NaN')
    """
    return "NaN" if number < 0 else class_names[number] if number < len(class_names) else str(number)


def worst_class(classes: pd.DataFrame) -> str:
    """The class of one network with the lowest Prec@1."""
    return str(classes.loc[classes["prec1"].idxmin(), "name"])


def lost_most(classes: pd.DataFrame) -> str | None:
    """The class of one network that lost most; None where it is compared with nothing."""
    return None if classes["delta_prec1"].isna().all() else str(classes.loc[classes["delta_prec1"].idxmin(), "name"])


def _of_worst(classes: pd.DataFrame, column: str) -> float:
    """A number of the class of one network that lost most, points; NaN where it is compared with nothing."""
    deltas = classes["delta_prec1"].astype(float)
    return math.nan if deltas.isna().all() else float(classes.loc[deltas.idxmin(), column])


# What that class lost, and both ends of the interval of `per_class`.
worst_delta, worst_low, worst_high = (partial(_of_worst, column=column) for column in ("delta_prec1", "low", "high"))


def confusion(compared: Sequence[Compared], class_names: Sequence[str]) -> Matrix | None:
    """Images by what the float network (rows) and the variant that lost most (columns) predict; None without a variant.

    Of more than `MAX_CLASSES` classes those with the most images that are predicted otherwise. Controls are left out.

    Args:
        compared: networks beside their float networks.
        class_names: by label.
    """
    variants = [pair for pair in compared if pair.reference is not None and not pair.is_control]
    if not variants:
        return None
    worst = min(variants, key=_change)
    assert worst.reference is not None, "chosen so"
    before, after = worst.reference.top1, worst.this.top1
    classes = np.unique(np.concatenate([before, after]))
    counts = pd.crosstab(before, after).reindex(index=classes, columns=classes, fill_value=0)
    return _limited(counts, worst, class_names)


def _change(pair: Compared) -> float:
    """Prec@1 less that of the float network."""
    assert pair.reference is not None, "chosen so"
    return (int(np.count_nonzero(pair.this.right)) - int(np.count_nonzero(pair.reference.right))) / pair.this.n


def _limited(counts: pd.DataFrame, worst: Compared, class_names: Sequence[str]) -> Matrix:
    """The matrix of the classes that can be shown, and what it is."""
    off = counts.where(~np.eye(len(counts), dtype=bool), 0)
    changed = off.sum(axis=0) + off.sum(axis=1)
    kept = sorted(changed.sort_values(ascending=False, kind="stable").index[:MAX_CLASSES])
    names = [name_of(int(number), class_names) for number in kept]
    shown = counts.loc[kept, kept].set_axis(names, axis=0).set_axis(names, axis=1)
    heading = f"{worst.title}: {int(off.to_numpy().sum())} of {worst.this.n} images are predicted otherwise"
    if len(kept) < len(counts):
        heading += f"\nthe {len(kept)} of {len(counts)} classes with most of them"
    return Matrix(shown, heading, row_label="the float network says", column_label="the copy says")
