"""Rows as a Markdown table, as columns of fixed width and as CSV."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qexp.reporting.tables import CSV_FLOAT


def columns(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of fixed-width text; the first `left` columns are flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if n < left else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def pipes(header: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of titles with their alignment, and cells."""
    lines = [[title for title, _ in header], [":--" if left else "--:" for _, left in header], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV: the same numbers give the same bytes, None is empty."""
    return frame.to_csv(index=False, float_format=CSV_FLOAT, na_rep="", lineterminator="\n")
