"""Any two rows of a table against each other: one family of tests, one adjusted p value and one interval for each pair.

Rejected: a family for the comparisons with a float network and another for the rest, in which a pair had two verdicts; and equal
weights, with which a sweep of 126 copies would ask 63 times more of each comparison that it was made for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qexp.base.progress import track
from qexp.reporting.frames.predictions import Predictions, StoredPredictions
from qexp.reporting.frames.repeats import is_further_draw
from qexp.reporting.frames.summary import is_control, is_float
from qexp.reporting.statistics.paired import ALPHA, comparable, is_tested, pair_interval, row_names
from qexp.stats.family import holm_adjusted
from qexp.stats.paired import mcnemar

BEST, ALIKE, WORSE = "best", "not separated", "worse"
PLANNED = 0.5  # share of alpha for the comparisons with a float network
COUNTED = ("first", "second", "lost", "gained", "p_value", "in_family", "row")
MAX_PAIRED = 200  # rows of which all pairs are listed
PAIR_COLUMNS = (
    "a", "b", "difference", "ci_low", "ci_high", "p_value", "p_holm", "lost", "gained", "disagreement", "n", "split", "epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a table.

    Args:
        pairs: `PAIR_COLUMNS`, b minus a in points; of more than `MAX_PAIRED` rows those with a float network or the best row.
        p_holm: adjusted p value of each row against its float network, NaN where there is none.
        vs_best: `BEST`, `WORSE` where some row is shown to be more accurate, else `ALIKE`; nothing of controls.
        num_tests: size of the family.
        num_planned: how many of these are with the row's own float network or its float control.
    """

    pairs: pd.DataFrame
    p_holm: pd.Series
    vs_best: pd.Series
    num_tests: int
    num_planned: int

    @property
    def level(self) -> float:
        """What the p value of the only comparison with a float network that is real must not exceed."""
        planned = np.arange(self.num_tests) < self.num_planned
        return ALPHA * float(weights(planned)[0]) if self.num_tests else ALPHA


def weights(planned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of alpha that each test begins with: half of it for the planned ones, the rest for the others.

    Args:
        planned: [m], whether a test is of a row against its float network.
    """
    count, others = int(planned.sum()), int((~planned).sum())
    if not count or not others:
        return np.full(len(planned), 1 / max(len(planned), 1))
    return np.where(planned, PLANNED / count, (1 - PLANNED) / others)


def compare_rows(table: pd.DataFrame, stored: StoredPredictions) -> Comparisons:
    """Compare any two rows of a table that are of the same images, controls outside of the family; of several draws the first.

    Args:
        table: rows `with_statistics`.
        stored: of `load_predictions`.
    """
    whole, table = table.index, table[~is_further_draw(table)]
    references = dict(zip(table.index, stored.references_of(table), strict=True))
    groups = [group for group in comparable(table, stored) if len(group[0]) > 1]
    parts = [_counted(*group, [stored.by_key.get(references[index]) for index in group[0].index]) for group in groups]
    frame = pd.concat(parts or [pd.DataFrame(columns=list(COUNTED))], keys=range(len(parts)) if parts else None)
    alone = table.index[is_tested(table) & table["p_value"].notna()].difference(frame["row"].dropna())  # its reference is no row
    family = frame[frame["in_family"].astype(bool)]
    values = np.concatenate([family["p_value"], table.loc[alone, "p_value"]]).astype(float)
    planned = np.concatenate([family["row"].notna(), np.ones(len(alone))]).astype(bool)
    adjusted = holm_adjusted(values, weights(planned))
    frame = frame.assign(p_holm=pd.Series(adjusted[: len(family)], index=family.index, dtype=float))
    own = frame.dropna(subset="row").set_index("row")["p_holm"]
    p_holm = pd.concat([own, pd.Series(adjusted[len(family) :], index=alone)]).astype(float).reindex(whole)
    vs_best, shown = pd.Series("", index=whole), [pd.DataFrame(columns=list(PAIR_COLUMNS))]
    names = dict(zip(table.index, row_names(table), strict=True))
    for number, (part, predictions) in enumerate(track(groups, "group of pairs")):
        vs_best.update(_against_best(part, predictions, frame.loc[number]))
        shown.append(_shown(part, predictions, frame.loc[number], [names[index] for index in part.index]))
    pairs = pd.concat(shown[1:], ignore_index=True) if groups else shown[0]
    return Comparisons(pairs, p_holm, vs_best, len(values), int(planned.sum()))


def _counted(part: pd.DataFrame, predictions: list[Predictions], references: list[Predictions | None]) -> pd.DataFrame:
    """Flips and p value of all pairs; `row` is that which the pair compares with its float network, if any."""
    right = np.stack([network.right for network in predictions]).astype(np.float64)
    first, second = np.array(list(combinations(range(len(part)), 2)), dtype=int).T
    only = right @ (1 - right).T  # [rows, rows], images that the row's network gets right and the column's wrong
    lost, gained = only[first, second].astype(int), only[second, first].astype(int)
    frame = pd.DataFrame({"first": first, "second": second, "lost": lost, "gained": gained, "p_value": mcnemar(lost, gained)})
    counted = (~is_control(part)).to_numpy()
    of: dict[tuple[int, int], Hashable] = {}
    for position, (index, tested, reference) in enumerate(zip(part.index, is_tested(part), references, strict=True)):
        if tested and reference is not None:
            # The float network of a quantization-aware training is listed as its start: it is known by what it predicts.
            same = (n for n in np.flatnonzero(is_float(part)) if np.array_equal(predictions[n].top1, reference.top1))
            other = int(next(same, position))
            of[min(position, other), max(position, other)] = index
    rows = [of.get(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    return frame.assign(in_family=counted[first] & counted[second], row=pd.Series(rows, dtype=object))


def _against_best(part: pd.DataFrame, predictions: list[Predictions], frame: pd.DataFrame) -> pd.Series:
    """The cell of each row that is in the family."""
    real = frame[frame["p_holm"].le(ALPHA) & frame["lost"].ne(frame["gained"])]
    beaten = set(real["first"].where(real["gained"] > real["lost"], real["second"]))
    counted = [position for position, control in enumerate(is_control(part)) if not control]
    best = max(counted, key=lambda position: np.count_nonzero(predictions[position].right), default=-1)
    cells = [BEST if position == best else WORSE if position in beaten else ALIKE for position in counted]
    return pd.Series(cells if len(counted) > 1 else [""] * len(counted), index=part.index[counted], dtype=object)


def _shown(part: pd.DataFrame, predictions: list[Predictions], frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The pairs as they are listed."""
    n = predictions[0].n
    if len(part) > MAX_PAIRED:
        best = np.argmax([np.count_nonzero(network.right) for network in predictions])
        central = is_float(part).to_numpy() | (np.arange(len(part)) == best)
        frame = frame[central[frame["first"]] | central[frame["second"]]]
    epochs = part["epoch"].astype(str).to_list()
    rows = []
    for a, b, down, up in frame[["first", "second", "lost", "gained"]].itertuples(index=False, name=None):
        interval = pair_interval(down, up, n)
        rows.append(
            {
                "a": names[a],
                "b": names[b],
                "difference": 100 * (up - down) / n,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "disagreement": 100 * np.count_nonzero(predictions[a].top1 != predictions[b].top1) / n,
                "epoch": epochs[a] if epochs[a] == epochs[b] else f"{epochs[a]}, {epochs[b]}",
                "n": n,
                "split": part["split"].iloc[0],
            }
        )
    return pd.concat([frame, pd.DataFrame(rows, index=frame.index)], axis=1)[list(PAIR_COLUMNS)]
