"""What a sweep's jobs are said to be, and that the same command again does what is missing and nothing else."""

import csv
import signal
from pathlib import Path

import pytest

from qexp import report


@pytest.fixture
def gated(tiny, monkeypatch, tmp_path):
    """A job over two epochs whose training fails once where there is a file `fail`."""
    monkeypatch.setenv("GATE", str(tmp_path))
    Path("open").touch()
    network = Path(__file__).with_name("gated.py")
    return (*(text for text in tiny if not text.startswith("model.factory=")), f"model.factory={network}:Gated", "train.epochs=2")


@pytest.fixture
def told(capsys):
    """What `qexp.report` prints of the jobs, and the rows of jobs.csv."""

    def ask():
        report.run(report.ReportSettings(name="digits"))
        with open("results/digits/jobs.csv") as handle:
            return capsys.readouterr().out, list(csv.DictReader(handle))

    return ask


def states(rows):
    return [row["state"] for row in rows]


def test_only_what_failed_runs_again(cli, gated, told):
    command = (*gated, "train.lr=0.05,0.01", "bits=4,8", "-m")
    Path("fail").touch()
    first = cli(*command)
    assert first.code == 1 and "1 of 2 trainings failed; the same command tries them again" in first.err
    out, rows = told()
    assert states(rows) == ["failed", "failed", "done", "done"]
    assert [row["asked"] for row in rows[1:3]] == ["train.lr=0.05 bits=8", "train.lr=0.01 bits=4"]
    assert {row["reason"] for row in rows[:2]} == {"OSError: the gate is broken"}
    traceback = Path(rows[0]["traceback"])
    assert "the gate is broken" in traceback.read_text() and traceback.is_relative_to(Path("runs/trainings").absolute())
    summary = (
        "jobs: 2 done, 2 failed\n  failed: train.lr=0.05 bits=4, train.lr=0.05 bits=8 (OSError: the gate is broken; traceback: "
    )
    assert summary in out and summary in first.out
    with open("results/digits/table.csv") as handle:  # its first epoch was evaluated
        assert [row["state"] for row in csv.DictReader(handle)] == ["failed"] * 3 + ["done"] * 3

    stored = {path: path.stat().st_mtime_ns for path in Path("runs/trainings").glob("*/variants/*") if path.suffix == ".jsonl"}
    second = cli(*command)
    assert second.code == 0 and "\njobs:" not in second.out, "all are done"
    assert second.out.count("nothing to do, every number is stored") == 1
    assert second.out.count("epoch 2/2") == 1 and "epoch 1/2" not in second.out
    touched = {path.parent.parent.name for path, time in stored.items() if path.stat().st_mtime_ns != time}
    assert touched == {rows[0]["training"]}
    out, rows = told()
    assert states(rows) == ["done"] * 4 and not traceback.exists() and not any(row["traceback"] for row in rows)
    third = cli(*command)
    assert third.code == 0 and third.out.count("nothing to do") == 2 and "epoch" not in third.out.partition("nothing to do")[0]


def test_a_refused_sweep_says_which_job_and_why(cli, tiny, told):
    refused = cli(*tiny, "bits=4,64", "-m")
    assert refused.code == 2 and not Path("runs/trainings").exists()
    out, rows = told()
    assert states(rows) == ["planned", "invalid"] and rows[1]["reason"] == "bits=64: allowed is an integer from 1 to 16"
    assert "jobs: 1 planned, 1 invalid\n  invalid: bits=64 (bits=64: allowed is an integer from 1 to 16)" in out
    assert [path.name for path in Path("results/digits").iterdir()] == ["jobs.csv"]
    # What only the network can tell, of one job in two of the same training.
    rules = ("policy=uniform,rules", "policy.rules=[{match: nosuch, bits: 4}]", "policy.linear_bits=null")
    assert cli(*tiny, *rules, "-m").code == 2 and not Path("runs/trainings").exists()
    out, rows = told()
    assert states(rows) == ["planned", "invalid"] and rows[1]["asked"] == "policy=rules" and "nosuch" in rows[1]["reason"]
    # Both are forgotten once they are put right.
    assert cli(*tiny, "bits=4,8", "-m").code == 0
    assert states(told()[1]) == ["done", "done"]
    assert cli(*tiny, "bits=0").code == 2
    assert states(told()[1]) == ["done", "done"]  # a command of which no job is right asks for nothing
    assert cli(*tiny, "bits=0,8", "-m").code == 2
    assert states(told()[1]) == ["invalid", "done", "done", "done"]  # the refused one did nothing to the others


def test_a_sweep_of_failures_is_reported(cli, tiny, told):
    done = cli(*tiny, "train.lr=1e30", "bits=4,8", "-m")
    assert done.code == 1 and "jobs: 2 failed" in done.out
    assert "\nnothing evaluated yet; see results/digits/jobs.csv\n" in done.out
    out, rows = told()
    assert states(rows) == ["failed", "failed"] and out.startswith("jobs: 2 failed\n") and "DivergenceError" in out
    assert "nothing evaluated yet; see results/digits/jobs.csv\n" in out
    assert [path.name for path in Path("results/digits").iterdir()] == ["jobs.csv"]
    # Older jobs that are not done stay on the list.
    assert cli(*tiny, "bits=2").code == 0
    out, rows = told()
    assert states(rows) == ["done", "failed", "failed"] and rows[0]["variant"] == "W2 int"
    assert any(line.startswith("jobs: 1 done, 2 failed") for line in out.splitlines())


def test_a_killed_process_is_not_running(warm, cli, tiny, told):
    network = next(text for text in tiny if text.startswith("model.factory=")).replace(":tiny", ":Mortal")
    command = [*(text for text in tiny if not text.startswith("model.factory=")), network, "train.epochs=2", "bits=4,8", "-m"]
    assert warm.start(*command, MORTAL_STEP="30").wait() == -signal.SIGKILL
    out, rows = told()
    assert states(rows) == ["killed", "killed"] and "was stopped" in rows[0]["reason"]
    assert "jobs: 2 killed" in out
    with open("results/digits/table.csv") as handle:
        assert {row["state"] for row in csv.DictReader(handle)} == {"killed"}
    assert cli(*command).code == 0
    assert states(told()[1]) == ["done", "done"]
