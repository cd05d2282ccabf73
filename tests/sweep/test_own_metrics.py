"""`evaluate.metrics` through whole commands: a metric of the user's own, and what is asked for of classes."""

import csv
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from qexp import report
from qexp.experiment.training import Evaluator

MARGIN = '''
import torch
from qexp.config.metrics import MetricInfo

SCALE = 1.0

def margin(logits, labels, reference):
    """How far the right logit lies above the largest wrong one."""
    right = logits.gather(1, labels[:, None])
    wrong = logits.scatter(1, labels[:, None], -torch.inf).max(1, keepdim=True).values
    return SCALE * (right - wrong).squeeze(1)

def metric():
    return MetricInfo(
        name="margin", title="margin", summary="Right logit less the largest wrong one.", code=margin, finish=None,
        unit="none", direction="higher", form=".3f", gives="number", reads="logits", needs_reference=False,
        on_float="value", averaged=True, to_mlflow=True, stored="never", always=False, file=None,
    )
'''


def written(text=MARGIN):
    Path("mine.py").write_text(text)
    return "evaluate.metrics=[mine.py:metric,per_class,confusion]"


def rows(file="table.csv"):
    with open(f"results/digits/{file}") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def finished(cli, tiny, tmp_path_factory):
    """Two seeds, a metric of the user's own, classes and confusion, with MLflow."""
    folder, before = tmp_path_factory.mktemp("own"), os.getcwd()
    os.chdir(folder)
    try:
        done = cli(*tiny, "tracking.enabled=true", "bits=2", "seed=0,1", written(), "draw_figures=true", "-m")
    finally:
        os.chdir(before)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture
def store(finished, tmp_path):
    """A copy of that folder as the working directory."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return finished[1]


def test_it_is_in_every_table_in_mlflow_and_on_the_page(store):
    table, seeds = rows(), rows("seeds.csv")
    assert len(table) == 4 and all(float(row["margin"]) for row in table)
    w2 = [float(row["margin"]) for row in table if row["variant"] == "W2 int"]
    (mean,) = [row for row in seeds if row["variant"] == "W2 int"]
    assert float(mean["margin_mean"]) == pytest.approx(sum(w2) / 2)
    assert float(mean["margin_sd"]) == pytest.approx(abs(w2[0] - w2[1]) / 2**0.5)
    page, text = Path("results/digits/report.html").read_text(), Path("results/digits/table.md").read_text()
    for where in (page, text, store.out):
        assert "margin" in where and f"{w2[0]:.3f}" in where
    assert f"{float(mean['margin_mean']):.3f} +- {float(mean['margin_sd']):.3f}" in text
    assert "Right logit less the largest wrong one (no unit, higher is better)" in text
    with sqlite3.connect("runs/mlflow.db") as database:
        sent = [value for (value,) in database.execute("select value from metrics where key = 'margin'")]
    assert sorted(sent) == pytest.approx(sorted(float(row["margin"]) for row in table), rel=1e-9)
    assert {float(row["margin"]) for row in rows("epochs.csv")} == {float(row["margin"]) for row in table}


def test_what_is_asked_of_classes_is_computed_again_by_verify(store, capsys):
    classes = rows("classes.csv")
    assert len(classes) == 4 * 10
    for row in rows():
        own = [line for line in classes if (line["training"], line["variant"]) == (row["training"], row["variant"])]
        assert sum(int(line["n"]) for line in own) == int(row["n"])
        assert row["worst_class"] == min(own, key=lambda line: float(line["prec1"]))["name"]
        if row["variant"] != "fp32":
            assert float(row["worst_class_delta"]) == min(float(line["delta_prec1"]) for line in own)
            assert float(row["worst_class_low"]) <= float(row["worst_class_delta"]) <= float(row["worst_class_high"])
    counts = rows("confusion.csv")
    assert sum(int(count) for row in counts for name, count in row.items() if name) == int(row["n"])
    assert Path("results/digits/figures/confusion.svg").exists()
    assert "What the float network says" in Path("results/digits/report.html").read_text()
    settings = report.ReportSettings(name="digits", verify=True)
    assert report.run(settings) == 0
    out = capsys.readouterr().out
    assert (
        "worst_class_delta" in out
        and "classes.csv: recomputed" in out
        and "confusion.csv: recomputed" in out
        and "margin (needs logits" in out
    )
    path = Path("results/digits/classes.csv")
    path.write_text(path.read_text().replace(",0.0,", ",1.0,").replace(",0,", ",1,"))
    assert report.run(settings) == 1 and "WRONG classes.csv" in capsys.readouterr().out


def test_a_report_of_runs_that_did_not_ask_can_have_classes(cli, tiny, capsys):
    assert cli(*tiny, "bits=2").code == 0
    before = Path("results/digits/table.csv").read_bytes()
    assert not Path("results/digits/classes.csv").exists() and b"worst" not in before
    assert report.run(report.ReportSettings(name="digits", metrics=["per_class"])) == 0
    assert "worst class" in capsys.readouterr().out and rows("classes.csv")
    assert report.run(report.ReportSettings(name="digits")) == 0
    assert Path("results/digits/table.csv").read_bytes() == before and not Path("results/digits/classes.csv").exists()


def test_a_stored_evaluation_that_lacks_the_metric_or_has_another_codes_is_done_again(cli, tiny, monkeypatch):
    seen, score = [], Evaluator.score

    def counted(self, state, wanted, *more):
        seen.extend(variant.label for variant in wanted)
        return score(self, state, wanted, *more)

    monkeypatch.setattr(Evaluator, "score", counted)

    def scored(*overrides):
        seen.clear()
        assert cli(*tiny, "bits=2", *overrides).code == 0
        return list(seen)

    both, ask = ["fp32", "W2 int"], written()
    assert scored() == both and scored(ask) == both and scored(ask) == []
    first = [float(row["margin"]) for row in rows()]
    assert scored() == [] and [float(row["margin"]) for row in rows()] == first
    written(MARGIN.replace("SCALE = 1.0", "SCALE = 2.0"))
    assert scored(ask) == both
    assert [float(row["margin"]) for row in rows()] == pytest.approx([2 * value for value in first])
    stored = [json.loads(line) for path in Path("runs").rglob("variants/*.jsonl") for line in path.read_text().splitlines()]
    keys = {row["variant"]: {other["digest"] for other in stored if other["variant"] == row["variant"]} for row in stored}
    assert all(len(digests) == 1 for digests in keys.values()) and "extra" not in stored[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('title="margin", ', ""), "missing 1 required keyword-only argument: 'title'"),
        (('on_float="value"', 'on_float="hidden"'), "on_float=hidden"),
        (('reads="logits"', 'reads="predictions"'), "reads=predictions: allowed is logits"),
        (('name="margin"', 'name="epoch"'), "Tables have another epoch"),
        (('name="margin"', 'name="prec1"'), "a name of its own"),
        ((".squeeze(1)", ""), "It returned shape [8, 1] for 8 images"),
        (("SCALE * (", "SCALE * labels.size(0) * ("), "hangs on the others of its batch"),
    ],
)
def test_a_metric_that_does_not_hold_is_one_mistake_and_nothing_runs(cli, tiny, change, said):
    assert change[0] in MARGIN
    done = cli(*tiny, written(MARGIN.replace(*change)))
    assert done.code == 2 and said in done.err and done.err.count("evaluate.metrics") == 1 and "Traceback" not in done.err
    assert not Path("runs/trainings").exists() and not Path("results").exists()


def test_an_unknown_name_is_refused_with_the_nearest(cli, tiny):
    done = cli(*tiny, "evaluate.metrics=[per_clas]")
    assert done.code == 2 and "Did you mean per_class?" in done.err
