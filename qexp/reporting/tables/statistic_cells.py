"""Statistics as cells of a table that people read: intervals, p values, flips."""

from __future__ import annotations

import pandas as pd

from qexp.reporting.statistics.pairs import ALIKE
from qexp.reporting.tables.render import numbers_text

StatisticColumn = tuple[str, list[str]]  # title, cells
TINY_P = 1e-300
NOT_SIGNIFICANT = "not significant"  # what people read of `ALIKE`, which files keep


def statistics(table: pd.DataFrame, *, wide: bool) -> list[StatisticColumn]:
    """The columns of paired statistics; those without a number are left to the caller to drop.

    Args:
        table: of `summarize`, with or without statistics.
        wide: flips, differing predictions and the claim of no loss, too.
    """
    if "p_value" not in table:
        return []
    title, column = ("Holm-adjusted p", "p_holm") if "p_holm" in table else ("p", "p_value")
    columns = [
        ("95 % CI", _intervals(table, "ci_low", "ci_high")),
        (title, numbers_text(table[column], p_text)),
    ]
    if wide:
        flips = [
            "" if pd.isna(lost) else f"{lost:.0f}/{gained:.0f}"
            for lost, gained in zip(table["lost"], table["gained"], strict=True)
        ]
        columns.append(("flips", flips))
        columns.append(("differ %", numbers_text(table["disagreement"], "{:.2f}".format)))
        if "non_inferior" in table:
            columns.append(
                ("no loss", [_no_loss(*claims) for claims in zip(table["non_inferior"], table["equivalent"], strict=True)])
            )
    if "vs_best" in table:
        columns.append(("vs best", [NOT_SIGNIFICANT if cell == ALIKE else cell for cell in table["vs_best"]]))
    return columns


def _no_loss(non_inferior: object, equivalent: object) -> str:
    return "" if non_inferior is None or pd.isna(non_inferior) else "equivalent" if equivalent else "yes" if non_inferior else "-"


def seed_statistics(seeds: pd.DataFrame) -> list[StatisticColumn]:
    """The columns of what seeds and images together leave open."""
    if "delta_low" not in seeds:
        return []
    over = "seeds" if "num_draws" not in seeds else "draws" if seeds["num_draws"].notna().all() else "seeds or draws"
    columns = [
        ("Prec@1 95 % CI", _intervals(seeds, "prec1_low", "prec1_high", sign="")),
        ("difference 95 % CI", _intervals(seeds, "delta_low", "delta_high")),
        (f"p over {over}", numbers_text(seeds["p_seeds"], p_text)),
    ]
    return [(title, cells) for title, cells in columns if any(cells)]


def seeds_explained(seeds: pd.DataFrame) -> str:
    """What these columns are."""
    if not seed_statistics(seeds):
        return ""
    over = seed_statistics(seeds)[-1][0].removeprefix("p over ")
    against = "the float control, where there is one" if "vs_control_mean" in seeds else "the float network"
    return (
        f" *95 % CI*: hierarchical bootstrap over {over} and images, of the difference against {against}. *p over {over}*: "
        f"paired t test of it over new {over}, for these images alone, not adjusted: what other images would give is not in it."
    )


def p_text(value: float) -> str:
    """A p value in few characters.

    >>> p_text(1.0), p_text(0.617), p_text(0.00232), p_text(3e-28), p_text(0.0)
    ('1', '0.62', '0.0023', '3e-28', '<1e-300')
    """
    if value < TINY_P:
        return "<1e-300"
    if value < 1e-4:
        return f"{value:.0e}"
    return f"{value:.2g}"


def interval_text(low: float, high: float, *, sign: str = "+") -> str:
    """An interval of points, or of percent without a sign.

    >>> interval_text(-0.3, 0.3), interval_text(90.1, 92.25, sign="")
    ('-0.30 to +0.30', '90.10 to 92.25')
    """
    return f"{low:{sign}.2f} to {high:{sign}.2f}"


def _intervals(frame: pd.DataFrame, low: str, high: str, *, sign: str = "+") -> list[str]:
    return [
        "" if pd.isna(start) else interval_text(start, end, sign=sign) for start, end in zip(frame[low], frame[high], strict=True)
    ]
