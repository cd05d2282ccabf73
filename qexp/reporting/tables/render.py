"""One renderer for every table: cells to Markdown, CSV and fixed width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qexp.base.text import MIB

CSV_FLOAT = "%.10g"  # more digits than a percentage of ten million images has
LARGE = 1e4  # losses from here on are as broad as the table

Title = tuple[str, bool | None]  # of a column, and whether it is flush left; None leaves it to the reader's program
Row = Mapping[str, Any]
Column = tuple[str, bool, Callable[[Row], str]]  # title, flush left?, cell


@dataclass(frozen=True)
class Display:
    """A rounded table.

    Args:
        caption: what all rows share.
        header: titles of the columns.
        rows: cells.
        left: one per column: flush left, or right.
        footnotes: alarms and notes.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[bool, ...]
    footnotes: tuple[str, ...]


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV, with full precision: the same numbers give the same bytes, None is empty."""
    return frame.to_csv(index=False, float_format=CSV_FLOAT, na_rep="", lineterminator="\n")


def markdown_table(header: Sequence[Title], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of titles with their alignment, and cells."""
    marks = {True: ":--", False: "--:", None: "---"}
    lines = [[title for title, _ in header], [marks[left] for _, left in header], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def fixed_width(rows: Sequence[Sequence[str]], left: Sequence[bool], *, rule: bool = False) -> list[str]:
    """Lines of fixed-width text.

    Args:
        rows: cells, the titles first.
        left: one per column: flush left, or right.
        rule: draw a line of dashes below the titles.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width) for cell, width, is_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]] if rule else lines


def indented(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of fixed-width text below a heading, the first column flush left."""
    return [f"  {line}" for line in fixed_width(rows, [True, *[False] * (len(rows[0]) - 1)])]


def filled(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[list[Title], list[list[str]]]:
    """Titles of the columns that hold anything, and the cells of each row in them."""
    cells = [[cell(row) for _, _, cell in columns] for row in rows]
    kept = [number for number in range(len(columns)) if any(line[number] for line in cells)]
    return [columns[number][:2] for number in kept], [[line[number] for number in kept] for line in cells]


def size_text(size: int) -> str:
    """Bytes in the unit that people read."""
    return f"{size / 1024:.1f} KiB" if size < MIB else f"{size / MIB:.2f} MiB"


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
