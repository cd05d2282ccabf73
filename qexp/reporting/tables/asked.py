"""Tables and matrices that are asked for: as CSV, and the first rows of tables on the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from qexp.base.files import write_texts
from qexp.base.table import Column, Table, html_table
from qexp.config.metrics import METRICS, MetricInfo
from qexp.reporting.frames.compared import NAMED
from qexp.reporting.statistics.asked import Made
from qexp.reporting.tables.render import csv_text

MAX_ROWS = 3  # of a network, on the page
_HIDDEN = ("training", "variant_key", "class")
_TITLES = {"label": "training", "name": "class", "float_prec1": "float Prec@1"}


def write_asked(folder: Path, made: Made) -> list[Path]:
    """Write tables and matrices, and take away those that are no longer asked for.

    Args:
        folder: `results/<name>`.
        made: of `make_asked`.
    """
    frames = {**made.tables, **{row: matrix.counts.reset_index(names="") for row, matrix in made.matrices.items()}}
    files = dict.fromkeys((row.file for row in METRICS.values() if row.file is not None), "")
    return write_texts(folder, files | {row.file: csv_text(frame) for row, frame in frames.items() if row.file is not None})


def asked_for_page(tables: Mapping[MetricInfo, pd.DataFrame]) -> list[dict[str, object]]:
    """What the page shows of them: titles, a caption, and the first rows of each network.

    Args:
        tables: of `Made`.
    """
    shown: list[dict[str, object]] = []
    for row, frame in tables.items():
        first = frame.groupby(["training", "variant_key", "split", "epoch"], sort=False).head(MAX_ROWS)
        hidden = {name for name in NAMED if name != "variant" and frame[name].nunique() == 1} | set(_HIDDEN)
        columns = [(_column(name, frame[name]), _values(first[name])) for name in frame if name not in hidden]
        rest = f" The first {MAX_ROWS} of each network are here, all of them in {row.file}." if len(first) < len(frame) else ""
        shown.append({"title": row.title, "caption": row.summary + rest, "table": html_table(Table.of_values(columns))})
    return shown


def _column(name: str, values: pd.Series) -> Column:
    """A column by what it holds: texts, counts, or numbers as the metric of that name has them."""
    title = METRICS[name].title if name in METRICS else _TITLES.get(name, name.replace("_", " "))
    if not is_numeric_dtype(values):
        return Column(name=name, title=title, kind="text")
    if (values.dropna() % 1 == 0).all():
        return Column(name=name, title=title, kind="count")
    return Column(name=name, title=title, kind="points" if (values.dropna() < 0).any() else "percent")


def _values(values: pd.Series) -> list[object]:
    """None where there is nothing; whole numbers whole, though a gap made the column one of floats."""
    whole = is_numeric_dtype(values) and (values.dropna() % 1 == 0).all()
    return [None if pd.isna(value) else int(value) if whole else value for value in values]
