"""A password in `tracking.uri` is in nothing that people read, and in nothing that is stored or sent on."""

import json
from pathlib import Path

import pytest

from qexp.tracking.journal import Journal

SECRET = "hunter2-not-real"


def holding():
    """Files below `runs/` and `results/` that hold the password."""
    files = [path for top in ("runs", "results") for path in Path(top).rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("typed", [SECRET, "${oc.env:TRACKING_PASSWORD}"])
def test_a_run_leaves_no_password_behind(cli, tiny, monkeypatch, typed):
    """MLflow's refusal of such a URI repeats it, password and all."""
    monkeypatch.setenv("TRACKING_PASSWORD", SECRET)
    uri = f"tracking.uri=nosuch://ann:{typed}@127.0.0.1:9"
    done = cli(*tiny, "tracking.enabled=true", uri, "tracking.timeout_s=900", "bits=8")
    assert done.code == 0, done.err
    (behind,) = [line for line in done.out.splitlines() if "MLflow is behind" in line]
    assert behind.count("nosuch://ann@127.0.0.1:9") == 2 and SECRET not in done.out + done.err
    assert holding() == []
    settings = [
        json.loads(row["artifacts"]["config.json"]) for row in Journal.of("runs", "digits").rows() if row["kind"] == "run"
    ]
    assert {config["tracking"]["uri"] for config in settings} == {"nosuch://ann@127.0.0.1:9"}


@pytest.mark.parametrize(
    "word",
    ["tracking.urii=URI", "name=URI", "tracking.uri=[URI]", "+tracking.uri={a: URI}", "tracking.uri=URI,b", "bits=URI("],
)
def test_a_refusal_does_not_repeat_it(cli, tiny, word):
    done = cli(*tiny, word.replace("URI", f"'http://ann:{SECRET}@127.0.0.1:9'"))
    assert done.code == 2 and SECRET not in done.out + done.err


def test_hydras_own_answers_do_not_show_it(cli, tiny):
    done = cli("--cfg", "job", *tiny, f"tracking.uri=http://ann:{SECRET}@127.0.0.1:9")
    assert done.code == 0 and "http://ann@127.0.0.1:9" in done.out and SECRET not in done.out


def test_a_journal_of_an_older_version_is_read_without_it():
    row = {"kind": "sweep", "sweep": "s", "time_ms": 0, "command": f"python -m qexp.train tracking.uri=http://ann:{SECRET}@host"}
    journal = Journal("runs/journal/old.jsonl")
    journal.path.parent.mkdir(parents=True)
    journal.path.write_text(json.dumps(row) + "\n")
    assert [read["command"] for read in journal.rows()] == ["python -m qexp.train tracking.uri=http://ann@host"]
