"""Tables and matrices that are asked for: as CSV, and the first rows of tables on the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from qexp.base.files import write_text_atomic
from qexp.config.metrics import METRICS, MetricInfo
from qexp.reporting.frames.compared import NAMED
from qexp.reporting.statistics.asked import Made
from qexp.reporting.tables.render import csv_text

MAX_ROWS = 10  # of a network, on the page


def write_asked(folder: Path, made: Made) -> list[Path]:
    """Write tables and matrices, and take away those that are no longer asked for.

    Args:
        folder: `results/<name>`.
        made: of `make_asked`.
    """
    frames = {**made.tables, **{row: matrix.counts.reset_index(names="") for row, matrix in made.matrices.items()}}
    files = {row.file: csv_text(frame) for row, frame in frames.items() if row.file is not None}
    for row in METRICS.values():
        if row.file is not None and row.file not in files:
            (folder / row.file).unlink(missing_ok=True)
    for file, text in files.items():
        write_text_atomic(folder / file, text)
    return [folder / file for file in files]


def asked_for_page(tables: Mapping[MetricInfo, pd.DataFrame]) -> list[dict[str, object]]:
    """What the page shows of them: titles, a caption, and the first rows of each network.

    Args:
        tables: of `Made`.
    """
    shown: list[dict[str, object]] = []
    for row, frame in tables.items():
        first = frame.groupby(["training", "variant_key", "split", "epoch"], sort=False).head(MAX_ROWS)
        hidden = {name for name in NAMED if name != "variant" and frame[name].nunique() == 1} | {
            "training",
            "variant_key",
            "class",
        }
        columns = [name for name in frame if name not in hidden]
        rest = f" The first {MAX_ROWS} of each network are here, all of them in {row.file}." if len(first) < len(frame) else ""
        shown.append(
            {
                "title": row.title,
                "caption": row.summary + rest,
                "header": [(_title(name), frame[name].dtype == object) for name in columns],
                "rows": [[_cell(value) for value in values] for values in first[columns].itertuples(index=False, name=None)],
            }
        )
    return shown


def _title(column: str) -> str:
    return METRICS[column].title if column in METRICS else column.replace("_", " ")


def _cell(value: object) -> str:
    """Two decimals, nothing where there is no number."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.2f}".removesuffix(".00") if value == int(value) else f"{value:.2f}"
    return str(value)
