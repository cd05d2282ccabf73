"""What MLflow holds after a sweep, and what the small commands make of it; each command is a process of its own."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

EPOCHS = 2

# Python imports it at the start of every process; at its end it says what that process had loaded.
LOADED = """
import atexit, os, sys
def tell():
    with open(os.environ["LOADED"], "a") as file:
        print(*sys.orig_argv[1:], "|", *(name for name in ("torch", "mlflow") if name in sys.modules), file=file)
atexit.register(tell)
"""


class Runs:
    """MLflow's store, read behind its back."""

    def __init__(self):
        with sqlite3.connect("runs/mlflow.db") as self.connection:
            rows = self.connection.execute("select run_uuid, name, status from runs where lifecycle_stage = 'active'").fetchall()
            self.ids = {name: run_id for run_id, name, _ in rows}
            self.status = {name: status for _, name, status in rows}
            assert len(self.ids) == len(rows)
            self.experiments = [row[0] for row in self.connection.execute("select name from experiments")]

    def points(self, name, metric):
        query = "select step, value from metrics where run_uuid = ? and key = ? order by step"
        return self.connection.execute(query, (self.ids[name], metric)).fetchall()

    def pairs(self, table, name):
        return dict(self.connection.execute(f"select key, value from {table} where run_uuid = ?", (self.ids[name],)))


@pytest.fixture(scope="module")
def tracked(process, tiny, tmp_path_factory):
    """A folder where a sweep has run with tracking on, and its command line."""
    folder, path, before = tmp_path_factory.mktemp("tracked"), tmp_path_factory.mktemp("path"), os.getcwd()
    (path / "sitecustomize.py").write_text(LOADED)
    os.chdir(folder)
    command = ("qexp.train", *tiny, "tracking.enabled=true", "tracking.timeout_s=900", f"train.epochs={EPOCHS}")
    try:
        done = process(*command, "bits=4,8", "-m", PYTHONPATH=str(path), LOADED=str(folder / "loaded.txt"))
    finally:
        os.chdir(before)
    assert done.returncode == 0, done.stderr
    assert "MLflow UI: python -m qexp.ui mlflow=true name=digits" in done.stdout and "behind" not in done.stdout + done.stderr
    return folder, command


@pytest.fixture
def store(tracked):
    """A copy of that folder as the working directory; its command line."""
    for name in ("runs", "results"):
        shutil.copytree(tracked[0] / name, name)
    return tracked[1]


def test_the_process_that_trains_never_loads_mlflow_nor_the_other_one_torch(tracked):
    lines = [line.split(" | ") for line in (tracked[0] / "loaded.txt").read_text().splitlines()]
    assert [loaded for command, loaded in lines if command == "-P -m qexp.tracking.feeder"] == ["mlflow"], lines
    assert [loaded for command, loaded in lines if command.startswith("-m qexp.train ")] == ["torch"], lines


def times():
    """Status, start and end of every run, by name."""
    with sqlite3.connect("runs/mlflow.db") as connection:
        rows = connection.execute("select name, status, start_time, end_time from runs where lifecycle_stage = 'active'")
        return {name: about for name, *about in rows}


def test_a_finished_command_again_leaves_the_times_of_runs_alone(cli, store):
    """MLflow would count the pause between the two as work."""
    before = times()
    assert len(before) == 3 and all(status == "FINISHED" and end > start for status, start, end in before.values())
    assert cli(*store[1:], "bits=4,8", "-m").code == 0
    assert times() == before
    assert cli(*store[1:], "bits=2,4,8", "-m").code == 0
    after = times()
    assert len(after) == 4 and {name: after[name] for name in before} == before, "nor does another variant change the others"


def test_one_run_per_training_and_one_nested_per_variant(store):
    runs = Runs()
    (training,) = [path.name for path in Path("runs/trainings").iterdir()]
    parent = f"custom {training[:6]}"
    assert "digits" in runs.experiments
    assert set(runs.status.items()) == {(parent, "FINISHED"), ("W4 int", "FINISHED"), ("W8 int", "FINISHED")}
    for name in runs.ids:
        for metric in ("prec1", "prec5", "loss"):
            assert [step for step, _ in runs.points(name, metric)] == [1, 2]
        tags = runs.pairs("tags", name)
        assert tags.get("mlflow.parentRunId") == (None if name == parent else runs.ids[parent])
        assert {"qexp.sweep", "qexp.git", "qexp.data_hash", "qexp.host", "qexp.device", "qexp.version.torch"} <= set(tags)
    assert [step for step, _ in runs.points(parent, "train_loss")] == [1, 2]
    mine, nested = runs.pairs("params", parent), runs.pairs("params", "W4 int")
    assert mine.items() <= nested.items() and mine["train.lr"] == "0.05"
    assert (nested["bits"], nested["mode"]) == ("4", "int")
    rows = [json.loads(line) for line in Path("runs/journal/digits.jsonl").read_text().splitlines()]
    recorded = [(row["epoch"], row["prec1"]) for row in rows if row["kind"] == "record" and row["variant"] == "W4 int"]
    assert runs.points("W4 int", "prec1") == recorded


@pytest.mark.slow
def test_a_second_sweep_adds_no_run_but_the_new_variant(store, process):
    before = Runs()
    assert process(*store, "bits=2,4,8", "-m").returncode == 0
    after = Runs()
    assert set(after.ids) - set(before.ids) == {"W2 int"}
    assert before.ids.items() <= after.ids.items()
    assert after.points("W4 int", "prec1") == before.points("W4 int", "prec1")
    assert len(after.points("W2 int", "prec1")) == EPOCHS


def test_report_makes_the_tables_again(store, warm):
    before = Path("results/digits/table.csv").read_text()
    shutil.rmtree("results")
    child = warm.start("name=digits", "results_dir=out", verb="report")
    assert child.wait() == 0 and "Prec@1" in child.text and "out/digits/" in child.text
    assert Path("out/digits/table.csv").read_text() == before
    assert list(Path("out/digits/figures").iterdir())


def test_sync_sends_what_a_lost_store_had(store, warm):
    before = Runs()
    Path("runs/mlflow.db").unlink()
    child = warm.start(verb="sync")
    assert child.wait() == 0 and "digits: " in child.text and "rows sent" in child.text
    after = Runs()
    assert set(after.ids) == set(before.ids) and set(after.status.values()) == {"FINISHED"}
    assert after.points("W4 int", "prec1") == before.points("W4 int", "prec1")


def test_trainings_are_listed_and_removed(store, warm):
    (training,) = [path.name for path in Path("runs/trainings").iterdir()]
    listed = warm.start(verb="trainings")
    assert listed.wait() == 0
    assert f"{training} custom digits" in " ".join(listed.text.split()) and "2/2" in listed.text and "1 stored" in listed.text
    removed = warm.start(f"remove={training[:5]}", verb="trainings")
    assert removed.wait() == 0 and removed.text.startswith(f"removed {training}")
    assert not list(Path("runs/trainings").iterdir())
