"""A sweep that is done, asked for again: nothing runs, a few bytes are written, and a report says the same."""

import json
from pathlib import Path

import pytest

from qexp.reporting.frames.jobs import load_jobs
from qexp.sweep.repeat import noted
from qexp.tracking.journal import Journal
from qexp.tracking.rows import files_row

JOURNAL = Path("runs/journal/digits.jsonl")
NOTHING = "nothing to do, every number is stored"


@pytest.fixture
def train(cli, tiny):
    """Run a sweep of the tiny network in the working directory; returns its output and the rows it appended."""

    def run(*words):
        before = sum(1 for _ in Journal(JOURNAL).rows())
        done = cli(*tiny, *words, "-m")
        assert done.code == 0, done.err
        return done.out, list(Journal(JOURNAL).rows())[before:]

    return run


def kinds(rows):
    return [row["kind"] for row in rows]


def jobs():
    return load_jobs("digits", "runs")[["asked", "state", "job"]].values.tolist()


def test_a_repeated_sweep_appends_a_few_bytes(train):
    words = ("bits=2,4,8", "mode=int,float")
    _, first = train(*words)
    before, table, size = jobs(), Path("results/digits/table.csv").read_bytes(), JOURNAL.stat().st_size
    for _ in range(2):
        out, rows = train(*words)
        assert NOTHING in out and kinds(rows) == ["sweep", "repeat"]
        assert jobs() == before and {state for _, state, _ in before} == {"done"}
    assert Path("results/digits/table.csv").read_bytes() == table
    assert JOURNAL.stat().st_size - size < 4000 < size / 10
    assert load_jobs("digits", "runs")["sweep"].unique().tolist() == [rows[0]["sweep"]] != [first[0]["sweep"]]


def test_a_part_of_a_sweep_in_another_order_is_the_latest(train):
    train("bits=2,4,8", "seed=0,1")
    out, rows = train("bits=8,2", "seed=1,0")
    assert kinds(rows) == ["sweep", "repeat"] and out.count(NOTHING) == 2
    assert rows[1]["jobs"] == [[0, 5, 1], [1, 4, 1], [2, 1, 1], [3, 0, 1]]
    assert [asked for asked, _, _ in jobs()] == ["seed=1 bits=8", "seed=0 bits=8", "seed=1 bits=2", "seed=0 bits=2"]


def test_jobs_under_other_words_are_noted_in_full(train):
    """What tells a job from the others of its sweep is another text where the sweep is another."""
    train("bits=2,4", "seed=0,1")
    _, rows = train("bits=2,4")
    assert kinds(rows) == ["sweep", "job", "job"]
    assert jobs() == [["bits=2", "done", 0], ["bits=4", "done", 1]]


def test_only_what_has_work_is_opened(train):
    train("bits=2,4")
    out, rows = train("bits=2,4,8")
    assert NOTHING not in out
    opened = [row["name"].split()[0] for row in rows if row["kind"] == "run"]
    assert len(opened) == 2 and opened[1] == "W8"  # the training, and the new copy
    assert kinds(rows).count("end") == 2 and kinds(rows).count("record") == 1
    out, rows = train("bits=2,4,8", "seed=0,1")
    assert out.count(NOTHING) == 1
    assert jobs()[0] == ["seed=0 bits=2", "done", 0] and [job for _, _, job in jobs()] == list(range(6))


@pytest.mark.parametrize("lost", ["number", "record", "end", "weights"])
def test_what_is_lost_is_done_again(train, lost):
    train("bits=2,4")
    if lost == "number":
        next(Path("runs").glob("trainings/*/variants/*.jsonl")).unlink()
    elif lost == "weights":
        next(Path("runs").glob("trainings/*/epochs/0001.safetensors")).unlink()
    else:
        lines = JOURNAL.read_text().splitlines(keepends=True)
        last = max(number for number, line in enumerate(lines) if json.loads(line)["kind"] == lost)
        JOURNAL.write_text("".join(lines[:last] + lines[last + 1 :]))
    _, rows = train("bits=2,4")
    assert "running" in [row.get("state") for row in rows] and "end" in kinds(rows)
    assert lost != "record" or kinds(rows).count("record") == 1
    out, rows = train("bits=2,4")
    assert NOTHING in out and kinds(rows) == ["sweep", "repeat"]


def test_a_report_that_was_not_noted_is_noted_by_a_repetition(train):
    """A command that ended while it drew."""
    train("bits=2,4")
    lines = JOURNAL.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] != "files"]
    assert len(kept) == len(lines) - 1
    JOURNAL.write_text("".join(kept))
    _, rows = train("bits=2,4")
    assert kinds(rows) == ["sweep", "repeat", "files"] and rows[2] == json.loads(lines[-1]) | {"time_ms": rows[2]["time_ms"]}
    _, rows = train("bits=2,4")
    assert kinds(rows) == ["sweep", "repeat"]


def test_a_report_is_noted_behind_its_numbers():
    files, number = files_row(None, ["a.csv", "b.png"]), {"kind": "record"}
    assert noted([number, files, {"kind": "repeat"}], [Path("a.csv")])
    assert not noted([number, files], [Path("a.csv"), Path("c.png")]), "figures are asked for later"
    assert not noted([files, number], [Path("a.csv")])
    assert not noted([number, files_row("run", ["a.csv"])], [Path("a.csv")]), "of one run"
    assert not noted([], [Path("a.csv")])


def test_a_fresh_training_and_another_description_are_no_repetition(train):
    train("bits=2,4")
    _, rows = train("bits=2,4", "fresh=true")
    assert kinds(rows).count("run") == 3 and kinds(rows).count("record") == 3
    _, rows = train("bits=2,4", "evaluate.batch_size=50")
    assert kinds(rows).count("run") == 3 and "record" not in kinds(rows)
