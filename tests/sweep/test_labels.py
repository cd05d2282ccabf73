"""Labels that are typed: rows have them, no hash does, and different variants stay apart."""

import csv
import json
from pathlib import Path

import pytest

from qexp.config.validate import validate
from qexp.sweep.check_read import why_unread
from qexp.tracking.journal import Journal
from qexp.tracking.mlflow_store import import_mlflow

JOURNAL = Path("runs/journal/digits.jsonl")


def table():
    with open("results/digits/table.csv", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def variants():
    return [row["variant"] for row in table()]


def test_another_label_renames_what_is_stored(cli, tiny):
    tracked = [word for word in tiny if not word.startswith("tracking.")]
    assert cli(*tracked, "bits=4,8", "-m").code == 0
    plain, before = table(), list(Journal(JOURNAL).rows())
    measured = {path: path.read_text() for path in Path("runs").glob("trainings/*/variants/*.jsonl")}

    def same_numbers(*names):
        rows = table()
        assert [row["variant"] for row in rows] == ["fp32", *names]
        renamed = {"variant", "data"}
        assert [{key: text for key, text in row.items() if key not in renamed} for row in rows] == [
            {key: text for key, text in row.items() if key not in renamed} for row in plain
        ]
        assert measured == {path: path.read_text() for path in Path("runs").glob("trainings/*/variants/*.jsonl")}

    cases = """cases=[["bits=4","label='4 | $5 bits'"],["bits=8"]]"""
    done = cli(*tracked, cases, "data.label='Small <digits>'", "-m")
    assert done.code == 0 and "4 | $5 bits" in done.out, done.err
    same_numbers("W8 int", "4 | $5 bits")
    assert {row["data"] for row in table()} == {"Small <digits>"}
    page = Path("results/digits/report.html").read_text(encoding="utf-8")
    assert "Small &lt;digits&gt; (content" in page and "4 | $5 bits" in page and "W4 int" not in page
    assert "Small &lt;digits&gt;" in Path("results/index.html").read_text(encoding="utf-8")
    names = ["W8 int", "4 | $5 bits"]
    client = import_mlflow().MlflowClient(tracking_uri="sqlite:///runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert {run.info.run_name for run in runs} >= {*names} and "W4 int" not in {run.info.run_name for run in runs}

    rows = list(Journal(JOURNAL).rows())[len(before) :]
    assert [row["variant"] for row in rows if row["kind"] == "record"] == ["4 | $5 bits"] * sum(
        row["kind"] == "record" and row["variant"] == "W4 int" for row in before
    )
    keys = [{row["key"] for row in part if row["kind"] == "job"} for part in (before, rows)]
    assert keys[0] == keys[1]
    done = cli(*tracked, cases, "data.label='Small <digits>'", "-m")
    assert "nothing to do, every number is stored" in done.out
    assert cli(*tracked, "bits=4,8", "-m").code == 0
    same_numbers("W8 int", "W4 int")
    assert {row["data"] for row in table()} == {"digits"}


def test_one_label_in_two_commands_says_what_each_is(cli, tiny):
    """Of two trainings too, whose rows would be taken for repeats of one variant; and with one plan for both."""
    clipped = ("bits=4", "calibrate.weights=mse", "label=ours")
    assert cli(*tiny, "bits=4", "label=ours", "seed=0,1", "-m").code == 0
    assert variants() == ["fp32", "ours"] * 2
    with open("results/digits/seeds.csv", encoding="utf-8") as handle:
        assert [row["variant"] for row in csv.DictReader(handle)] == ["fp32", "ours"]
    assert cli(*tiny, *clipped).code == 0
    assert sorted(variants()) == ["fp32", "fp32", "ours (W4 int w_mse)", "ours (W4 int)", "ours (W4 int)"]


SEVERAL = "allowed is the name of one variant. It would name 2, "


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ("[['bits=4','label=ours'],['bits=8','label=ours','seed=1']]", f"label=ours: {SEVERAL}W4 int and W8 int: give each"),
        ("[['bits=8'],['bits=4','label=W8 int']]", f"label=W8 int: {SEVERAL}W8 int and W4 int: give each"),
        ("[['bits=4','data.label=a'],['bits=8','data.label=b']]", "data.label=b: allowed is a. Jobs that share a training"),
        ("[['bits=4','label=fp32']]", "label=fp32: allowed is another text. fp32 names the network as trained."),
        ("[['bits=4','data.label=a_b '],['bits=8']]", "data.label=a_b: allowed is null. Jobs that share a training"),
    ],
    ids=["two variants", "another's generated label", "two data sets", "float", "one data set"],
)
def test_labels_that_name_several_are_refused_before_anything_runs(cli, tiny, cases, message):
    done = cli(*tiny, f"cases={cases}", "-m")
    assert done.code == 2 and message in done.err
    assert not Path("runs/trainings").exists() and not JOURNAL.exists()


def test_the_float_network_keeps_its_name(cli, tiny, job):
    assert cli(*tiny, "float_only=true", "label=ours").code == 0
    assert variants() == ["fp32"]
    assert "not by qexp.analyze" in why_unread("label", validate(job()), "analyze")


def test_a_stored_label_has_its_parts(cli, tiny):
    assert cli(*tiny, "bits=4", "label=ours").code == 0
    records = [json.loads(line) for line in JOURNAL.read_text().splitlines() if '"kind":"record"' in line]
    assert records[-1]["named"]["given"] == records[-1]["variant"] == "ours" and records[-1]["named"]["weights"] == [4]
    assert "given" not in records[0]["named"]  # as in all journals of before
