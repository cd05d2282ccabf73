import csv
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qexp.base.errors import UserError
from qexp.reporting.frames.jobs import JOB_COLUMNS, format_jobs, load_jobs
from qexp.reporting.report import write_report
from qexp.tracking.process import Process

TRAINING = "a1b2c3d4e5f60718"
HERE = Process.current()
DEAD = replace(HERE, start=HERE.start + "0")


def row(state, variant="W8 int", *, sweep="s1", job=None, process=HERE, **changes):
    """A `job` row as a sweep writes it; the number and what was asked for are in the leader's first rows only."""
    leads = job is not None
    values = {
        "kind": "job", "sweep": sweep, "key": f"asked for {variant}", "job": job,
        "asked": f"variant={variant}" if leads else None,
        "training": TRAINING if leads else None, "variant_key": f"key {variant}" if leads else None,
        "variant": variant if leads else None, "fresh": False, "state": state, "reason": None, "traceback": None,
        "process": asdict(process), "time_ms": 10,
    }  # fmt: skip
    return values | changes


def invalid(reason="bits=64: allowed is less", **changes):
    return row("invalid", "W64 int", job=1, **changes) | {
        "reason": reason,
        "training": None,
        "variant_key": None,
        "variant": None,
    }


def states(runs_dir):
    return dict(load_jobs("exp", runs_dir)[["asked", "state"]].values)


@pytest.mark.parametrize(
    "later, state",
    [
        ([], "planned"),
        ([row("running")], "running"),
        ([row("running", process=replace(HERE, host="elsewhere"))], "running"),
        ([row("running", process=DEAD)], "killed"),
        ([row("running"), row("killed")], "killed"),
        ([row("running"), row("preempted")], "preempted"),
        (
            [row("running"), row("failed", reason="OSError: no"), row("failed", reason="OSError: no", traceback="/t.txt")],
            "failed",
        ),
        ([row("running"), row("done")], "done"),
    ],
    ids=["planned", "running", "elsewhere", "dead", "interrupted", "preempted", "failed", "done"],
)
def test_the_last_row_tells(write, later, state):
    if not HERE.start:
        pytest.skip("this system does not tell processes with one number apart")
    jobs = load_jobs("exp", write([row("planned", job=0)], later))
    assert tuple(jobs.columns) == JOB_COLUMNS
    (job,) = jobs.to_dict("records")
    assert (job["state"], job["sweep"], job["job"]) == (state, "s1", 0)
    assert (job["training"], job["variant"], job["asked"]) == (TRAINING, "W8 int", "variant=W8 int")
    assert (job["traceback"] == "/t.txt") == (state == "failed")
    assert (job["pid"] == HERE.pid) is (state == "running")


def test_complete_numbers_are_done_whatever_a_row_says(write, training):
    numbers = training(["W8 int"])
    cut = [line for line in numbers if line["kind"] != "record" or line["epoch"] < 8]
    job_rows = [row("planned", job=0), row("running", process=DEAD)]
    assert states(write(job_rows, numbers)) == {"variant=W8 int": "done"}
    assert states(write(job_rows, cut)) == {"variant=W8 int": "killed"}


def test_fresh_forgets_the_numbers_from_before(write, training):
    fresh = [row("planned", job=0, fresh=True, time_ms=5_000), row("failed", fresh=True, time_ms=5_001)]
    assert states(write(training(["W8 int"]), fresh)) == {"variant=W8 int": "failed"}
    assert states(write(training(["W8 int"]), fresh, training(["W8 int"], time_ms=6_000))) == {"variant=W8 int": "done"}


def test_a_waiting_sweep_does_not_hide_that_another_runs_the_job(write):
    waits = row("planned", sweep="s2", job=0)
    assert states(write([row("planned", job=0), row("running"), waits])) == {"variant=W8 int": "running"}
    assert states(write([row("planned", job=0), row("failed"), waits])) == {"variant=W8 int": "planned"}


def test_earlier_jobs_are_listed_until_they_are_done(write):
    first = [row("planned", name, job=number) for number, name in enumerate(("W8 int", "W4 int", "W2 int"))]
    ended = [row("done", "W8 int"), row("failed", "W4 int"), row("failed", "W2 int")]
    second = [row("planned", "W2 int", sweep="s2", job=0), row("done", "W2 int", sweep="s2")]
    jobs = load_jobs("exp", write(first, ended, second))
    assert jobs[["sweep", "asked", "state"]].values.tolist() == [
        ["s2", "variant=W2 int", "done"],
        ["s1", "variant=W4 int", "failed"],
    ]


def test_a_refused_sweep_counts_until_there_is_another(write):
    failed = [row("planned", job=0), row("failed")]
    refused = [row("planned", sweep="s2", job=0), invalid(sweep="s2")]
    assert states(write(failed, refused)) == {"variant=W8 int": "planned", "variant=W64 int": "invalid"}
    done = [row("planned", "W2 int", sweep="s0", job=0), row("done", "W2 int", sweep="s0")]
    kept = states(write(done, refused))  # what is there does not vanish behind a mistake
    assert kept == {"variant=W8 int": "planned", "variant=W64 int": "invalid", "variant=W2 int": "done"}
    other = [row("planned", "W4 int", sweep="s3", job=0)]
    assert states(write(failed, refused, other)) == {"variant=W4 int": "planned", "variant=W8 int": "failed"}


def test_what_is_printed():
    jobs = [
        row("done", job=0),
        row("done", job=1),
        invalid(),
        row("failed", job=2, reason="OSError: no", traceback="/else/t.txt"),
    ]
    frame = _frame([*jobs, row("failed", "W4 int", job=3, reason="OSError: no", traceback=str(Path.cwd() / "runs/t.txt"))])
    assert format_jobs(frame).splitlines() == [
        "jobs: 2 done, 2 failed, 1 invalid",
        "  failed: variant=W8 int (OSError: no; traceback: /else/t.txt)",
        "  failed: variant=W4 int (OSError: no; traceback: runs/t.txt)",
        "  invalid: variant=W64 int (bits=64: allowed is less)",
    ]
    many = _frame([row("failed", f"W{bits} int", job=bits, reason="no") for bits in range(1, 9)])
    assert format_jobs(many).endswith("variant=W4 int, ... (8) (no)")
    many = _frame([row("failed", f"W{bits} int", job=bits, reason=f"no {bits}") for bits in range(1, 11)])
    assert len(format_jobs(many).splitlines()) == 10 and format_jobs(many).endswith("... and 2 lines more: jobs.csv")


def _frame(rows):
    import pandas as pd

    return pd.DataFrame(rows)


def test_the_table_has_the_states_of_its_rows(write, training, tmp_path):
    numbers = [line for line in training(["W8 int", "W4 int", "W2 int"]) if line["kind"] != "record" or line["epoch"] < 6]
    job_rows = [
        row("planned", "W8 int", job=0),
        row("running", "W8 int"),
        row("planned", "W4 int", job=1),
        row("failed", "W4 int"),
    ]
    report = write_report("exp", runs_dir=write(numbers, job_rows), results_dir=tmp_path / "out")
    with open(tmp_path / "out/exp/table.csv") as handle:
        states_of = {line["variant"]: line["state"] for line in csv.DictReader(handle)}
    assert states_of == {"fp32": "running", "W8 int": "running", "W4 int": "failed", "W2 int": "partial"}
    assert report.table.splitlines()[-3] == "jobs: 1 running, 1 failed"
    assert {path.name for path in report.tables} == {
        "table.csv",
        "epochs.csv",
        "table.md",
        "table.tex",
        "jobs.csv",
        "report.html",
    }


def test_a_report_without_numbers(write, tmp_path):
    report = write_report("exp", runs_dir=write([row("planned", job=0)]), results_dir=tmp_path / "out")
    assert report.table == "jobs: 1 planned" and report.figures == ()
    assert [path.name for path in report.tables] == ["jobs.csv"]
    with pytest.raises(UserError, match="at least one evaluation"):
        write_report("exp", runs_dir=write([]), results_dir=tmp_path / "out")
