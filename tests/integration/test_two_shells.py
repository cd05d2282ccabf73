"""Several real processes on one store at once. A gate in the network holds the one that trains until the others wait for it."""

import csv
import json
import re
import signal
import time
from pathlib import Path

import pytest

from qexp.reporting.frames.jobs import load_jobs
from qexp.reporting.report import write_report

LIMIT_S = 900  # on whatever is waited for; reached only where something is wrong
WAITING = "Waiting for another process that works on training"


@pytest.fixture
def gated(tiny):
    network = Path(__file__).with_name("gated.py")
    kept = [text for text in tiny if not text.startswith("model.factory=")]
    return (*kept, f"model.factory={network}:Gated", "train.epochs=2", "deterministic=true")


@pytest.fixture
def shell(warm, gated, tmp_path):
    """Start `python -m qexp.train ...` and go on."""
    started = []

    def start(*arguments):
        started.append(warm.start(*gated, *arguments, GATE=str(tmp_path)))
        return started[-1]

    yield start
    for process in started:
        process.kill(signal.SIGKILL)


def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, [path.read_text()[-2000:] for path in Path().glob("*.log")]
        time.sleep(0.05)


def evaluations(runs="runs"):
    """(variant's key, epoch, digest of its logits) of every evaluation made, sorted."""
    rows = [
        json.loads(line) for path in Path(runs).glob("trainings/*/variants/*.jsonl") for line in path.read_text().splitlines()
    ]
    return sorted((row["variant_key"], row["epoch"], row["digest"]) for row in rows)


def curve(runs="runs"):
    (log,) = Path(runs).glob("trainings/*/train.jsonl")
    return [[json.loads(line)[key] for key in ("epoch", "train_loss", "train_prec1")] for line in log.read_text().splitlines()]


def table():
    with open("results/digits/table.csv") as handle:
        return [(row["variant"], row["state"]) for row in csv.DictReader(handle)]


def test_three_shells_train_once(shell):
    processes = one, two, _ = [shell("bits=4,8", "-m"), shell("bits=4,8", "-m"), shell("bits=2")]
    until(lambda: Path("reached").exists() and sum(WAITING in process.text for process in processes) == 2)

    # One report while they are at work: the first epoch is there, and whoever trains is running.
    report = write_report("digits", runs_dir="runs", results_dir="results")
    states = {row.asked: (row.state, row.pid) for row in load_jobs("digits", "runs").itertuples()}
    holder = int(Path("reached").read_text())
    assert holder in [process.pid for process in processes]
    running = {asked for asked, (state, pid) in states.items() if (state, pid) == ("running", holder)}
    assert running in ({"bits=4", "bits=8"}, {"bits=2 mode=int"})
    assert {state for asked, (state, _) in states.items() if asked not in running} == {"planned"}
    assert ("fp32", "running") in table() and "running" in report.table

    Path("open").touch()
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [epoch for epoch, *_ in curve()] == [1, 2]
    assert sum("epoch 2/2" in process.text for process in processes) == 1
    made = [(key, epoch) for key, epoch, _ in evaluations()]
    assert len(made) == len(set(made)) == 4 * 2  # the float network and three widths, each once after each epoch
    shown = [re.findall(r"^(fp32|W8 int|W4 int) .*?([\d.]+ +[\d.]+)  ", said, re.M) for said in (one.text, two.text)]
    assert len(shown[0]) == 3 and shown[0] == shown[1]  # tests of differences depend on whether the third shell's row is there
    assert "nothing to do" in one.text + two.text
    write_report("digits", runs_dir="runs", results_dir="results")
    assert table() == [(name, "done") for name in ("fp32", "W8 int", "W4 int", "W2 int")]
    assert set(load_jobs("digits", "runs")["state"]) == {"done"}


def test_who_waits_for_a_killed_process_goes_on(shell, cli, gated):
    command = ("bits=4", "mode=int,float", "-m")
    processes = [shell(*command), shell(*command)]
    until(lambda: Path("reached").exists() and any(WAITING in process.text for process in processes))
    holder, other = sorted(processes, key=lambda process: process.pid != int(Path("reached").read_text()))
    holder.kill(signal.SIGKILL)
    Path("open").touch()
    assert holder.wait() == -signal.SIGKILL
    assert other.wait() == 0, other.text
    assert cli(*gated, *command, "runs_dir=undisturbed").code == 0
    assert evaluations() == evaluations("undisturbed") and len(evaluations()) == 3 * 2
    assert curve() == curve("undisturbed")
    assert set(load_jobs("digits", "runs")["state"]) == {"done"}
