"""The table of an experiment that holds quantization-aware trainings: each float start once, points against the float control."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from qexp.reporting.frames.qat_labels import START
from qexp.tracking.record import FLOAT_VARIANT

LINEAGE = ("role", "method", "comparison", "curve", "start", "control")
ROLES = {"start": 0, "control": 1, "qat": 2, "checkpoint": 3, "float": 4}
NUMBERS = ["split", "n", "prec1", "prec5"]


def has_qat(frame: pd.DataFrame) -> bool:
    """True where trainings have a role in a comparison."""
    return "role" in frame


def one_start_each(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the float networks of quantization-aware trainings that repeat their start; of a start from a file one is kept.

    Args:
        table: one row per variant.
    """
    table = table.copy()
    of_float = table["variant"] == FLOAT_VARIANT
    repeats = of_float & (table["role"] == "qat") & table["start"].notna()
    numbers = [(*row[:-1], f"{row[-1]:.6g}") for row in table[[*NUMBERS, "loss"]].itertuples(index=False)]
    scores = dict(zip(table.index, zip(table["comparison"], numbers, strict=True), strict=True))
    listed = {(table.at[index, "training"], scores[index][1]) for index in table.index[of_float & ~repeats]}
    dropped = []
    # A training that is done before one that is not: the row has the state of the training that it is taken from.
    for index in sorted(table.index[repeats], key=lambda index: (table.at[index, "state"] != "done", index)):
        start = table.at[index, "start"]
        if listed & {(start, scores[index][1]), (start, scores[index])}:
            dropped.append(index)
            continue
        listed.add((start, scores[index]))
        name = f"{table.at[index, 'comparison']} {START}".strip()
        table.loc[index, ["label", "group", "curve", "role", "control"]] = [name, name, START, "start", None]
    return table.drop(index=dropped)


def training_order(table: pd.DataFrame) -> pd.Series:
    """The rank of each row's training: by comparison, then start, control, and by method, falling bits, settings, seed."""
    comparisons = pd.factorize(table["comparison"])[0]
    bits = table[table["variant"] != FLOAT_VARIANT].groupby("training")["bits"].max()
    ranks = pd.DataFrame(
        {
            "comparison": np.where(comparisons < 0, len(table), comparisons),  # outside of any: behind them
            "role": table["role"].map(ROLES),
            "method": pd.factorize(table["trained_with"])[0],
            "bits": -table["training"].map(bits).where(table["role"] == "qat", 0).fillna(0),
            "group": pd.factorize(table["group"])[0],
            "seed": table["seed"],
            "training": pd.factorize(table["training"])[0],
        },
        index=table.index,
    )
    return ranks.apply(tuple, axis=1)


def points_against_control(table: pd.DataFrame, records: pd.DataFrame) -> pd.Series:
    """Prec@1 less that of the float control after the same epoch, NaN where there is none.

    Args:
        table: rows of quantized networks and others.
        records: all epochs.
    """
    floats = records[records["variant"] == FLOAT_VARIANT]
    rows = floats[["training", "split", "n", "epoch", "prec1"]].itertuples(index=False)
    known = {tuple(row[:-1]): row[-1] for row in rows}
    points = [
        math.nan if row.variant == FLOAT_VARIANT else row.prec1 - known.get((row.control, row.split, row.n, row.epoch), math.nan)
        for row in table[["variant", "control", "split", "n", "epoch", "prec1"]].itertuples()
    ]
    return pd.Series(points, index=table.index, dtype=float)
