"""The columns that say what a row of results is; those of its numbers are beside them, in `results.py`."""

from __future__ import annotations

from collections.abc import Sequence

from qexp.base.table import Column
from qexp.reporting.statistics.pairs import BEST, WORSE
from qexp.reporting.tables.statistic_cells import NOT_SIGNIFICANT

Filled = tuple[Column, Sequence[object]]  # a column and its values
DESCRIBING = {
    column.name: column
    for column in (
        Column(name="protocol", title="protocol", kind="text"),
        Column(name="label", title="training", kind="text"),
        Column(name="group", title="training", kind="text"),
        Column(name="variant", title="variant", kind="text"),
        Column(name="bits", title="bits", kind="count", form=str),
        Column(name="mode", title="mode", kind="text"),
        Column(name="policy", title="policy", kind="text"),
        Column(name="quant", title="quant", kind="text"),
        Column(name="granularity", title="granularity", kind="text"),
        Column(name="input_quant", title="input", kind="text"),
        Column(name="engine", title="engine", kind="text"),
        Column(name="split", title="split", kind="text"),
        Column(name="n", title="n", kind="count"),
        Column(name="seed", title="seed", kind="count"),
        Column(name="num_seeds", title="seeds", kind="count"),
        Column(name="num_draws", title="draws", kind="count"),
        Column(name="epoch", title="epoch", kind="count"),
        Column(name="state", title="state", kind="text"),
    )
}
GRID = ("policy", "quant", "granularity", "input_quant")
MARKS = {"vs best": {BEST: "best", NOT_SIGNIFICANT: "alike", WORSE: "worse"}}


def rounded_column(title: str, cells: Sequence[str]) -> Filled:
    """A column of numbers that are rounded already, left out where there are none.

    Args:
        title: of the column.
        cells: texts.
    """
    marks = MARKS.get(title, {})
    return Column(name=title, title=title, kind="number", form=str, optional=True, marks=marks), cells
