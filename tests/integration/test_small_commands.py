"""report, sync and trainings where something is wrong, in this process."""

import sys
from pathlib import Path

import pytest

from qexp import report, sync, trainings
from qexp.base.keyvalue import run_verb
from qexp.engine.trajectory import TrajectoryStore

VERBS = {
    "report": (report.ReportSettings, report.run),
    "sync": (sync.SyncSettings, sync.run),
    "trainings": (trainings.TrainingsSettings, trainings.run),
}


@pytest.fixture
def verb(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"qexp.{name}", *arguments])
        code = run_verb(*VERBS[name], "")
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def stored():
    """Two finished trainings and one that is not, by hashes that begin alike."""
    for name, status in (("12345678aaaaaaaa", "done"), ("1234e567bbbbbbbb", "done"), ("9900000000000000", "running")):
        training = TrajectoryStore("runs").open(name)
        config = {"model": {"name": "resnet20"}, "data": {"name": "digits"}}
        training.begin(identity={}, config=config, versions={}, epochs=3)
        training._write_info({**training.info, "status": status})


def there():
    return sorted(path.name for path in Path("runs/trainings").iterdir())


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (("report",), ["name=(missing)"]),
        (("report", "name=digits"), ["runs_dir=runs", "python -m qexp.train"]),
        (("report", "nam=x"), ["nam=", "Did you mean name?"]),
        (("report", "name=digits", "verify"), ["verify="]),
        (("sync", "name=none"), ["runs_dir=runs", "no journal, of none"]),
        (("sync", "url=x"), ["url=", "name, uri, runs_dir", "Did you mean uri?"]),
        (("trainings", "list"), ["list=", "remove, runs_dir"]),
        (("trainings", "remove=abc"), ["remove=abc", "a stored hash, incomplete or all"]),
    ],
    ids=str,
)
def test_mistakes_are_said(verb, arguments, parts):
    code, out, err = verb(*arguments)
    assert code == 2 and out == ""
    assert all(part in err for part in parts), err
    assert "Traceback" not in err


def test_nothing_to_send(verb):
    assert verb("sync") == (0, "There is no journal in runs/journal: nothing to send.\n", "")


def test_an_empty_store_is_listed(verb):
    code, out, _ = verb("trainings")
    assert code == 0 and out.endswith("0 stored in runs/trainings\n")


def test_the_list_says_how_far_each_is(stored, verb):
    code, out, _ = verb("trainings")
    assert code == 0 and "3 stored" in out
    line = next(line for line in out.splitlines() if line.startswith("99"))
    assert "resnet20" in line and "digits" in line and "0/3" in line and line.endswith("running")


def test_removal_by_the_beginning_of_a_hash(stored, verb):
    code, _, err = verb("trainings", "remove=1234")
    assert code == 2 and "exactly one" in err and len(there()) == 3
    assert verb("trainings", "remove=nothing,12345678")[0] == 2 and len(there()) == 3
    assert verb("trainings", "remove=12345678")[0] == 0
    assert there() == ["1234e567bbbbbbbb", "9900000000000000"]
    assert verb("trainings", "remove=1234e567,1234")[0] == 0
    assert there() == ["9900000000000000"]


@pytest.mark.parametrize("text", ["remove=9900,", "remove=,", "remove=9900,zz"])
def test_a_slip_removes_nothing(stored, verb, text):
    assert verb("trainings", text)[0] == 2
    assert len(there()) == 3


def test_removal_by_state(stored, verb):
    assert verb("trainings", "remove=incomplete")[0] == 0
    assert there() == ["12345678aaaaaaaa", "1234e567bbbbbbbb"]
    assert verb("trainings", "remove=all")[0] == 0
    assert there() == []


def test_a_training_at_work_is_not_removed(stored, verb):
    with TrajectoryStore("runs").open("9900000000000000").lock():
        code, _, err = verb("trainings", "remove=99")
    assert code == 2 and "no process works on" in err and len(there()) == 3
