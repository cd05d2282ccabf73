"""One sweep, killed many times at moments that nobody chose, and the numbers of an undisturbed one."""

import csv
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

COLUMNS_OF_TIME = ("time_ms", "sweep", "seconds", "images_per_s")


@pytest.fixture
def command(tiny):
    """Two trainings of three epochs, with dropout, and copies of every epoch; a state is stored every fourth step."""
    options = [text for text in tiny if not text.startswith(("model.factory=", "tracking."))]
    (network,) = [text.replace(":tiny", ":Mortal") for text in tiny if text.startswith("model.factory=")]
    train = ("train.epochs=3", "train.checkpoint_every_steps=4", "train.lr=0.05,0.01", "deterministic=true")
    return (*options, network, *train, "mode=int,half", "-m")


def seen():
    """What an onlooker sees change while the sweep makes progress."""
    paths = [*Path("runs").glob("trainings/*/*"), *Path("runs").glob("journal/*.jsonl")]
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found.append((path.name, stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))


def kill_somewhere(child, chance):
    """Let the sweep make a few steps of progress, or none, and kill it a moment later; False if it ended before."""
    changes, last, moment = chance.choice((0, 1, 1, 2, 3, 5)), seen(), chance.random()
    end = time.monotonic() + 60
    while changes and time.monotonic() < end:
        time.sleep(0.002)
        now = seen()
        if now != last:
            changes, last = changes - 1, now
    time.sleep(0.03 * moment)
    return child.kill(signal.SIGKILL)


def rows(name):
    with open(f"results/digits/{name}.csv") as handle:
        return [{key: text for key, text in row.items() if key not in COLUMNS_OF_TIME} for row in csv.DictReader(handle)]


def mlflow_points():
    """(run, metric, step) -> value, without the training's hash in run names; and the statuses."""
    with sqlite3.connect("runs/mlflow.db") as connection:
        query = "select name, key, step, value from metrics join runs using (run_uuid) where lifecycle_stage = 'active'"
        points = sorted(connection.execute(query).fetchall())
        statuses = {row[0] for row in connection.execute("select status from runs where lifecycle_stage = 'active'")}
        count = connection.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0]
    return points, statuses, count


@pytest.mark.parametrize("wanted, bits", [(5, "3"), pytest.param(24, "3,8", marks=pytest.mark.slow)])
def test_kills_change_nothing(warm, command, tmp_path, request, wanted, bits):
    if wanted < 24:  # the others may also strike while MLflow's store is made, which takes seconds
        request.getfixturevalue("tracked_here")
    chance, kills, command = random.Random(0), 0, (*command, f"bits={bits}")
    while kills < wanted:
        child = warm.start(*command)
        if not kill_somewhere(child, chance):
            break
        assert child.wait() == -signal.SIGKILL
        kills += 1
    assert kills == wanted, f"the sweep was done after {kills} kills: make it longer"
    last = warm.start(*command)
    assert last.wait() == 0, last.text
    assert not list(Path("runs").rglob("*.tmp"))
    chaos = {name: rows(name) for name in ("table", "epochs")}, mlflow_points()
    assert {row["state"] for row in rows("table")} == {"done"}

    (tmp_path / "undisturbed").mkdir()
    os.chdir("undisturbed")
    quiet = warm.start(*command)
    assert quiet.wait() == 0, quiet.text
    tables, (points, statuses, count) = chaos
    for name, found in tables.items():
        assert found == rows(name), name
    assert (points, statuses, count) == mlflow_points()
    assert statuses == {"FINISHED"}
    assert count == 2 * (2 + len(bits.split(",")))  # float and half are one run each, whatever the widths
