"""What is asked for and is not one number per evaluation: tables, the columns that read them, matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from qexp.base.catalog import import_object
from qexp.base.errors import UserError, choose
from qexp.config.metrics import METRICS, MetricInfo
from qexp.reporting.frames.compared import Matrix, beside_float
from qexp.reporting.frames.predictions import StoredPredictions
from qexp.reporting.statistics.verdict import Verdict

IN_REPORTS = METRICS.names_where(lambda row: row.gives in ("table", "matrix"))


@dataclass(frozen=True)
class Made:
    """What was asked for, by row.

    Args:
        tables: row -> its frame.
        matrices: row -> what is drawn.
    """

    tables: Mapping[MetricInfo, pd.DataFrame] = field(default_factory=dict)
    matrices: Mapping[MetricInfo, Matrix] = field(default_factory=dict)


def check_asked(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once; what a report makes alone can be asked of it.

    Raises:
        UserError: another name.
    """
    try:
        return tuple(dict.fromkeys(choose("metrics", name, IN_REPORTS) for name in names))
    except UserError as error:
        remedy = f"{error.remedy} A number is measured by an evaluation, with evaluate.metrics.".strip()
        raise UserError("metrics", error.value, allowed=IN_REPORTS, remedy=remedy) from None


def make_asked(
    verdict: Verdict, names: Sequence[str], stored: StoredPredictions, class_names: Sequence[str]
) -> tuple[Verdict, Made]:
    """The table with the columns of what was asked for, and the rest of it; only of networks whose predictions are stored.

    Args:
        verdict: of `compare_variants`.
        names: of tables and matrices.
        stored: of `load_predictions`.
        class_names: by label.
    """
    compared = beside_float(verdict.table, stored)
    tables, matrices = {}, {}
    if names and not compared:
        verdict = replace(verdict, gaps=(*verdict.gaps, f"No {' and '.join(names)}: no predictions are stored."))
    for name in names if compared else ():
        made = code_of(METRICS[name])(compared, class_names)
        if isinstance(made, Matrix):
            matrices[METRICS[name]] = made
        elif made is not None:
            tables[METRICS[name]] = made
    for row, frame in tables.items():
        columns = columns_of(row.name, frame, verdict.table)
        table = verdict.table.copy()
        for number, (column, values) in enumerate(columns.items(), start=table.columns.get_loc("n")):
            table.insert(number, column.name, values)
        verdict = replace(verdict, table=table, metrics=(*verdict.metrics, *columns))
    return verdict, Made(tables, matrices)


def columns_of(name: str, frame: pd.DataFrame, table: pd.DataFrame) -> dict[MetricInfo, list[Any]]:
    """Columns of `table.csv` that read a table, a value for each of its rows.

    Args:
        name: of the table.
        frame: that table.
        table: whose rows it is about.
    """
    keys = ["training", "variant_key", "split", "epoch"]
    parts = {key: part for key, part in frame.groupby(keys, sort=False)}
    rows = [parts.get(key) for key in table[keys].itertuples(index=False, name=None)]
    return {
        column: [None if part is None else code_of(column)(part) for part in rows]
        for column in METRICS.values()
        if column.reads == name
    }


def code_of(row: MetricInfo) -> Any:
    """The function of a row of ours."""
    return import_object(str(row.code))
