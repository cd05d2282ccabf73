"""A table's networks beside their float networks, image by image: what tables and matrices that are asked for are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from qexp.reporting.frames.predictions import Predictions, StoredPredictions, keys_of
from qexp.reporting.frames.repeats import is_further_draw
from qexp.reporting.frames.summary import is_compared, is_control

NAMED = ["training", "label", "variant", "variant_key", "split", "epoch"]  # columns that say which network it is


@dataclass(frozen=True, eq=False)
class Compared:
    """One row of a table.

    Args:
        named: its `NAMED`.
        title: for people.
        this: what it predicts.
        reference: what the float network that it is tested against predicts of the same images; None of a float network itself,
            or where it was not kept.
        is_control: it is quantized without rounding.
    """

    named: Mapping[str, object]
    title: str
    this: Predictions
    reference: Predictions | None
    is_control: bool


@dataclass(frozen=True, eq=False)
class Matrix:
    """Counts that are drawn as a heat map; the diagonal, where both say the same, is not coloured.

    Args:
        counts: rows by columns, named.
        heading: above it.
        row_label: what rows are.
        column_label: what columns are.
    """

    counts: pd.DataFrame
    heading: str
    row_label: str
    column_label: str


def beside_float(table: pd.DataFrame, stored: StoredPredictions) -> list[Compared]:
    """The rows of a table whose predictions are stored.

    Args:
        table: of `summarize`.
        stored: of `load_predictions`.
    """
    rows = []
    table = table[~is_further_draw(table)]  # twenty copies that are meant to be one would make the unluckiest the worst
    named, several = table[NAMED].to_dict("records"), table["training"].nunique() > 1
    keys = zip(keys_of(table), stored.references_of(table), strict=True)
    for values, (key, other), alone, control in zip(named, keys, ~is_compared(table), is_control(table), strict=True):
        this, reference = stored.by_key.get(key), None if other is None else stored.by_key.get(other)
        if this is not None:
            alike = reference is not None and not alone and reference.images == this.images
            title = f"{values['label']}: {values['variant']}" if several else str(values["variant"])
            known = {str(name): value for name, value in values.items()}
            rows.append(Compared(known, title, this, reference if alike else None, control))
    return rows
