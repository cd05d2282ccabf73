"""Rows of metrics beside what else names metrics: fields of records, columns of tables, the page that lists them."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from qexp.base.errors import UserError
from qexp.base.types import Metrics
from qexp.config.metrics import ALWAYS, METRICS, OWN, check_row
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import load_predictions
from qexp.reporting.frames.summary import TABLE_COLUMNS, own_metrics, summarize
from qexp.reporting.statistics.paired import with_statistics
from qexp.reporting.statistics.verdict import compare_variants
from qexp.tracking.record import Record

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
STORE = Path(__file__).parents[1] / "stored_runs" / "v1" / "store"
MINE = replace(METRICS["kl"], name="mine", **OWN)
AGAIN = {"classes": "of classes", "log_prob": "of log-probabilities", "never": "no"}


def line(row):
    """A row as the page has it."""
    asked = "always there" if row.always else f"`{row.name if row.reads == 'predictions' else row.reads}`"
    texts = [f"`{row.name}`", row.title, row.unit, row.direction, row.summary, asked, "yes" if row.to_mlflow else "no"]
    return f"| {' | '.join([*texts, AGAIN[row.stored]]).replace('||', chr(92) + '|' + chr(92) + '|')} |"


def test_the_page_lists_every_row():
    assert re.findall(r"^\| `.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == [line(row) for row in METRICS.values()]


def test_what_every_evaluation_has_is_a_column():
    names = [row.name for row in ALWAYS]
    assert names == [name for name in TABLE_COLUMNS if name in METRICS]
    assert {item.name for kind in (Metrics, Record) for item in fields(kind)} & set(METRICS) <= set(names)


def test_no_column_of_ours_is_taken_for_a_users_metric():
    records = load_records("qat", STORE)
    stored = load_predictions(records, STORE)
    records = with_statistics(records, stored)
    verdict = compare_variants(summarize(records), records, stored)
    assert own_metrics(records) == own_metrics(verdict.table) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"unit": "metres"}, "unit"),
        ({"averaged": "yes"}, "averaged"),
        ({"title": " "}, "title"),
        ({"form": ".2q"}, "form"),
        ({"needs_reference": False}, "on_float"),
        *(({name: value}, name) for name, value in {"always": True, "file": "x.csv", "reads": "predictions"}.items()),
    ],
)
def test_a_users_row_that_contradicts_itself_is_refused(changes, field):
    check_row(MINE, max)
    with pytest.raises(UserError) as refused:
        check_row(replace(MINE, **changes), max)
    assert refused.value.key == field


def test_the_code_of_a_users_row_is_a_function():
    with pytest.raises(UserError, match="code=3"):
        check_row(MINE, 3)
