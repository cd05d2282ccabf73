"""What only reports need of tables: CSV with every digit, and how numbers are rounded.

Terminal, Markdown, LaTeX and HTML are in `qexp.base.table`, with the table itself.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

import pandas as pd

from qexp.base.table import Table

CSV_FLOAT = "%.10g"  # more digits than a percentage of ten million images has
# What a spreadsheet would compute, such as the name `=1+1` of a class; no number, alone or with a unit, and no lone sign.
_FORMULA = re.compile(r"(?![+-](\d+\.?\d*(e[+-]?\d+)?|inf)( [a-zA-Z ]+)?$)[=+@\t\r-].", re.DOTALL)
LARGE = 1e4  # losses from here on are as broad as the table


@dataclass(frozen=True)
class Display:
    """A rounded table.

    Args:
        caption: what all rows share.
        table: what they do not.
        footnotes: alarms and notes.
    """

    caption: str
    table: Table
    footnotes: tuple[str, ...]


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV, with full precision: the same numbers give the same bytes, None is empty, and no text is a formula."""
    titles = _csv_cells(pd.Series(frame.columns.astype(str), dtype=object))
    columns = [_csv_column(frame.iloc[:, number]) for number in range(frame.shape[1])]
    return "".join(f"{','.join(row)}\n" for row in [titles, *zip(*columns, strict=True)])


def _csv_column(column: pd.Series) -> list[str]:
    """The cells of a column. Equal ones, of which a table of epochs has many, are written once."""
    if column.dtype == "float64":
        same = pd.Series(column.to_numpy().view("int64"))  # by their bits: 0.0 is not -0.0
    else:
        same = column.map(repr) if column.dtype == object else column  # by their texts: 1 is neither 1.0 nor True
    numbers, first = pd.factorize(same, use_na_sentinel=False)[0], (~same.duplicated()).to_numpy()
    cells = _csv_cells(column[first])
    return [cells[number] for number in numbers.tolist()]


def _csv_cells(column: pd.Series) -> list[str]:
    """The cells of a column, each as pandas writes it, quoted where it has to be.

    Numbers and texts are written here: a table has a hundred columns, and pandas takes milliseconds for each, however short.
    """
    values = column.tolist()
    if column.dtype == "float64":
        cells = ["" if isnan(value) else CSV_FLOAT % value for value in values]
    elif column.dtype in ("int64", "bool") or all(isinstance(value, str) for value in values):
        cells = [str(value) for value in values]
    else:
        text = pd.DataFrame({"cell": column, "": 0}).to_csv(index=False, header=False, float_format=CSV_FLOAT, na_rep="")
        cells = [cell for cell, _ in csv.reader(io.StringIO(text, newline=""))]
    return [_csv_cell(f"'{cell}" if _FORMULA.match(cell) else cell) for cell in cells]


def _csv_cell(cell: str) -> str:
    """A text as a cell of a row with others."""
    if not any(mark in cell for mark in '",\r\n'):
        return cell
    row = io.StringIO(newline="")
    csv.writer(row, lineterminator="\n").writerow([cell, ""])
    return row.getvalue().removesuffix(",\n")


def numbers_text(values: pd.Series, form: Callable[[float], str]) -> list[str]:
    """Rounded numbers, nothing where there is none. A loss that is no number is shown as `nan`."""
    keep_nan = values.name == "loss"
    return ["" if value is None or (pd.isna(value) and not keep_nan) else form(float(value)) for value in values]


def loss_text(value: float) -> str:
    """Four decimals, or three digits of a number that is none of a working network."""
    return f"{value:.3g}" if abs(value) >= LARGE else f"{value:.4f}"


def small_text(value: float) -> str:
    """A divergence: as a loss, or the power of ten where four decimals would be zeros."""
    return loss_text(value) if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
