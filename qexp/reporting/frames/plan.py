"""The plan of a run, as its row in the journal has it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from qexp.tracking.row_types import RunRow

PLAN_FILE = "plan.json"


def plan_of(run: RunRow) -> list[dict[str, Any]]:
    """Rows of a run's plan, one for each tensor; empty where it has none. Not to be changed: runs of one plan share them.

    Args:
        run: row of the journal.
    """
    text = run.get("artifacts", {}).get(PLAN_FILE)
    return _parsed(text) if text else []


@lru_cache(maxsize=4096)  # both the frame and plan.csv read them, and trainings of a sweep have the same
def _parsed(text: str) -> list[dict[str, Any]]:
    rows = json.loads(text)
    return rows if isinstance(rows, list) else []
