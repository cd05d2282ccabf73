"""What the machine does beside a run, by MLflow's own monitor in a real store; and that nobody is measured who did not ask."""

import dataclasses
import importlib.util
import time

import pytest

from qexp.base.errors import UserError
from qexp.config.tracking import TrackingSettings
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.process import Process

PARENT = "a1b2c3d4"
CPU = "system/cpu_utilization_percentage"


def feed_rows(journal, store, sweep, *, asked, process):
    """Send a sweep whose runs are of `process`, and end it once its training has been measured twice, or ended at once."""
    settings = dataclasses.replace(store.settings, system_metrics=asked)
    feed = MlflowFeed(journal, experiment="exp", settings=settings, runs_dir=store.runs_dir)
    feed.start()
    opened, *rest = [row | ({"process": process} if row["kind"] == "run" else {}) for row in sweep() if row["kind"] != "sweep"]
    journal.append([opened])
    feed.notify()
    while asked and process == own() and len(points(store)) < 2:
        time.sleep(0.05)
    journal.append(rest)
    assert feed.close() is None


def own():
    return dataclasses.asdict(Process.current())


def points(store):
    runs = store.runs() if store.path.exists() else {}
    return store.points(PARENT, CPU) if PARENT in runs else []


@pytest.fixture
def often(monkeypatch):
    pytest.importorskip("psutil", reason="needs psutil: make dev")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")


def test_a_training_is_measured_until_it_ends(journal, store, sweep, often):
    feed_rows(journal, store, sweep, asked=True, process=own())
    measured = points(store)
    assert [step for step, _ in measured] == list(range(len(measured))) and all(0 <= value <= 100 for _, value in measured)
    assert {run for run in store.runs() if store.points(run, CPU)} == {PARENT}, "variants share its machine and time"
    assert store.points(PARENT, "prec1") == [(1, 81.0), (2, 82.0)], "results are what they are without"
    assert {status for status, _, _ in store.runs().values()} == {"FINISHED"}


@pytest.mark.parametrize("asked", [True, False])
def test_nobody_elses_run_is_measured_and_none_without_being_asked(journal, store, sweep, often, asked):
    feed_rows(journal, store, sweep, asked=asked, process=own() | ({"pid": 1} if asked else {}))
    assert not points(store) and store.points(PARENT, "prec1")


def test_what_measures_has_to_be_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'qexp\[system\]'"):
        TrackingSettings(system_metrics=True)
    TrackingSettings(enabled=False, system_metrics=True)
