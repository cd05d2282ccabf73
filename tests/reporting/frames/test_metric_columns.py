"""Metrics that were asked for, in frames: a column each, described by the journal alone, averaged where every seed has it."""

from dataclasses import replace

import pandas as pd
import pytest

from qexp.config.metrics import METRICS, OWN, described
from qexp.reporting.frames.load import load_asked, load_records
from qexp.reporting.frames.summary import own_metrics, seed_table, summarize
from qexp.reporting.tables.results import format_table, markdown
from qexp.tracking.record import CLASSES_FILE, METRICS_FILE

MINE = replace(METRICS["prec5"], name="mine", title="Mine", form="+.3f", unit="count", **OWN)
SEEDS = ("a1b2c3d4e5f60718", "b" * 16)


@pytest.fixture
def asked(training, write):
    """The journal of two seeds; the metric is in the records of those that are named."""

    def make(*with_metric):
        parts = []
        for seed, key in enumerate(SEEDS):
            rows = training(["W4 int"], training=key, params={"seed": seed}, seed=seed)
            texts = {METRICS_FILE: described([MINE, METRICS["per_class"]]), CLASSES_FILE: '["cat","dog"]'}
            for row in rows if seed in with_metric else ():
                row |= {"artifacts": texts} if row["kind"] == "run" else {"extra": {"mine": 0.5 + seed + row["epoch"]}}
            parts.append(rows)
        return write(*parts)

    return make


def test_a_metric_is_a_column_with_a_mean_over_seeds(asked):
    runs_dir = asked(0, 1)
    known, records = load_asked("exp", runs_dir), load_records("exp", runs_dir)
    assert (known.metrics[-1], known.more, known.class_names) == (replace(MINE, code=None), ("per_class",), ("cat", "dog"))
    table = summarize(records, metrics=known.metrics)
    assert set(table["mine"]) == {8.5, 9.5} and list(table).index("mine") + 1 == list(table).index("n")
    assert [row.name for row in own_metrics(table)] == ["mine"]
    seeds = seed_table(table, known.metrics)
    assert set(seeds["mine_mean"]) == {9.0} and list(seeds["mine_sd"]) == pytest.approx([0.5**0.5] * 2)
    assert "+9.500" in format_table(table, known.metrics)
    text = markdown("exp", table, seeds, metrics=known.metrics)
    assert "| +9.000 +- 0.707 |" in text and "Mine: " in text


def test_a_seed_without_it_leaves_the_mean_empty(asked):
    runs_dir = asked(1)
    known = load_asked("exp", runs_dir).metrics
    seeds = seed_table(summarize(load_records("exp", runs_dir), metrics=known), known)
    assert len(seeds) and seeds["mine_mean"].isna().all() and seeds["prec1_mean"].notna().all()


def test_without_it_everything_is_as_before(asked):
    runs_dir = asked()
    known, records = load_asked("exp", runs_dir), load_records("exp", runs_dir)
    assert known.more == () and "mine" not in records
    pd.testing.assert_frame_equal(summarize(records, metrics=known.metrics), summarize(records))
