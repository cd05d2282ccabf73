"""Metrics as cells of a table that people read, by their rows."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from qexp.config.metrics import MetricInfo
from qexp.reporting.frames.summary import is_compared, is_float
from qexp.reporting.tables.render import loss_text, numbers_text, small_text

FORMS: dict[str, Callable[[float], str]] = {"loss": loss_text, "small": small_text}


def is_accuracy(row: MetricInfo) -> bool:
    """True for what the paired statistics are about."""
    return row.always and row.unit in ("percent", "points")


def number_text(row: MetricInfo, value: float) -> str:
    """One value as its row says.

    Args:
        row: of the metric.
        value: a number.
    """
    return FORMS[row.form](value) if row.form in FORMS else format(value, row.form)


def metric_cells(table: pd.DataFrame, row: MetricInfo) -> tuple[str, list[str]]:
    """Title and cells of a metric, empty where there is no value.

    Args:
        table: of `summarize`.
        row: of the metric.
    """
    values = table[row.name].mask(~_has_reference(table, row)) if row.on_float == "hidden" else table[row.name]
    if row.gives == "text":
        return row.title, ["" if pd.isna(value) else str(value) for value in values]
    return row.title, numbers_text(values, lambda value: number_text(row, value))


def _has_reference(table: pd.DataFrame, row: MetricInfo) -> pd.Series:
    """True in rows of copies; of float networks that another one is the reference of, where the metric is against that one."""
    return is_compared(table) if row.name == "delta_prec1" else ~is_float(table)
