"""`plan.csv`: what becomes of each tensor, in every plan of a table; the screen shows a line for each variant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from qexp.base.files import write_text_atomic
from qexp.reporting.frames.plan import plan_of
from qexp.reporting.tables.render import csv_text
from qexp.tracking.row_types import RunRow

PLAN_TABLE = "plan.csv"
COLUMNS = (
    "name", "kind", "role", "shape", "bits", "mode", "scheme", "granularity", "axis", "group_size", "rule", "reason",
    "num_elements", "size_bytes",
)  # fmt: skip
COPIES = ["training", "variant_key", "variant"]
LabelledPlan = tuple[str, list[dict[str, Any]]]


def plans_of(runs: Mapping[str, RunRow], table: pd.DataFrame) -> list[LabelledPlan]:
    """Label and rows of the plan of each copy in a table; of equal texts the rows are the same objects.

    Args:
        runs: of `load_runs`.
        table: of `summarize`.
    """
    of = [(variant, runs.get(f"{training}/{key}")) for training, key, variant in table[COPIES].itertuples(index=False)]
    planned = [(variant, plan_of(run)) for variant, run in of if run is not None]
    return [(variant, rows) for variant, rows in planned if rows]


def write_plans(plans: Iterable[LabelledPlan], folder: Path) -> list[Path]:
    """Write `plan.csv`, each plan once, under the label of the first variant that has it; nothing where there is none.

    Args:
        plans: of `plans_of`.
        folder: of the report.
    """
    different: dict[str, LabelledPlan] = {}
    seen: set[int] = set()  # objects
    for label, tensors in plans:
        if id(tensors) not in seen:
            seen.add(id(tensors))
            different.setdefault(json.dumps(tensors, sort_keys=True), (label, tensors))
    rows = [
        {"variant": variant, **{column: _cell(row.get(column)) for column in COLUMNS}}
        for variant, plan in different.values()
        for row in plan
    ]
    if not rows:
        return []
    write_text_atomic(folder / PLAN_TABLE, csv_text(pd.DataFrame(rows, dtype=object)))
    return [folder / PLAN_TABLE]


def _cell(value: object) -> object:
    """A shape as `16x3x3x3`."""
    return "x".join(map(str, value)) if isinstance(value, list) else value
