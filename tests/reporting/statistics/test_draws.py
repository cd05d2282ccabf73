"""Rows that differ in the draw of their calibration images: one variant with a spread, in tables, sentences, page and checks."""

import re

import numpy as np
import pandas as pd
import pytest

from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import load_predictions
from qexp.reporting.frames.repeats import is_further_draw, one_of_each, over_draws, repeats
from qexp.reporting.frames.summary import seed_table, summarize
from qexp.reporting.report import write_report
from qexp.reporting.statistics.draws import draw_pairs
from qexp.reporting.statistics.verify import verify_tables

N = 1000
GENERATOR = np.random.default_rng(5)
HARD = GENERATOR.random(N)
METHODS = {"minmax": 0.70, "mse": 0.80}  # of the images are right


def right(share):
    return HARD + GENERATOR.normal(0, 0.03, N) < share


@pytest.fixture
def rows(tmp_path, predicted):
    """Two methods with three draws each, and a copy that learned from one draw, of one training."""
    copies = {
        f"W4 int {method} n32{word}": right(share) for word in ("", " draw_1", " draw_2") for method, share in METHODS.items()
    }
    copies = {"fp32": HARD < 0.85, "W8 int": HARD < 0.845, "W8 int once": HARD < 0.849} | copies
    return named(predicted(copies, folder=tmp_path / "runs"))


def named(rows):
    """Records with the parts of their labels, their draws and their ranges."""
    for row in rows:
        if row["kind"] == "record":
            way, *words = row["variant"].split()[1:] or ["fp32"]
            weights = None if row["variant"] == "fp32" else [row["bits"]]
            row["named"] = {"way": way, "weights": weights, "activations": [], "words": words}
            draw = int(words[-1].removeprefix("draw_")) if words and words[-1].startswith("draw_") else 0
            row |= {"draw": draw} if draw else {}
            row |= {"calibration": "ranges"} if "n32" in words or "once" in words else {}
    return rows


@pytest.fixture
def table(rows, write):
    records = load_records("exp", write(rows))
    return summarize(records)


def test_draws_are_one_variant_with_a_spread(table):
    found = list(repeats(table))
    assert [(one.values["variant"], one.over, one.count) for one in found] == [
        (f"W4 int {method} n32", "draws", 3) for method in METHODS
    ]
    assert is_further_draw(table).sum() == 4
    seeds = seed_table(table)
    numbers = [table["prec1"][table["without_draw"] == f"W4 int {method} n32"] for method in METHODS]
    assert seeds["prec1_mean"].tolist() == pytest.approx([part.mean() for part in numbers])
    assert seeds["prec1_sd"].tolist() == pytest.approx([part.std(ddof=1) for part in numbers])
    share = seeds["prec1_mean"] / 100
    assert seeds["images_sd"].tolist() == pytest.approx(list(100 * np.sqrt(share * (1 - share) / N)))
    assert seeds["num_draws"].tolist() == [3, 3] and seeds["num_seeds"].tolist() == [1, 1]
    assert over_draws(table)["variant"].tolist() == ["fp32", "W8 int", "W8 int once", *seeds["variant"]]
    assert over_draws(table)["prec1"].tolist()[3:] == pytest.approx(seeds["prec1_mean"].tolist())
    assert one_of_each(table)["notes"].tolist()[3:] == [("the first of 3 draws of calibration images",)] * 2


def test_draws_of_several_trainings_are_repeats_of_each(rows, write):
    other = [row | {"run": row["run"].replace("a1b2", "ffff"), "seed": 1} for row in rows]
    other = [row | {"training": row["training"].replace("a1b2", "ffff")} if "training" in row else row for row in other]
    other = [row | {"params": row["params"] | {"seed": 1}} if "params" in row else row for row in other]
    found = list(repeats(summarize(load_records("exp", write(rows, other)))))
    assert [(one.over, one.count) for one in found].count(("draws", 3)) == 4
    assert {one.values["variant"] for one in found if one.over == "seeds"} == {"fp32", "W8 int", "W8 int once"}


def test_records_without_draws_are_as_before(rows, write):
    kept = [row for row in rows if not row.get("draw")]
    table = summarize(load_records("exp", write(kept)))
    assert not {"draw", "without_draw"} & set(table.columns) and not list(repeats(table))


def test_variants_are_compared_draw_by_draw(table, rows, tmp_path):
    records = load_records("exp", tmp_path / "runs")
    stored = load_predictions(records, tmp_path / "runs")
    pair = draw_pairs(table, stored).iloc[0]
    difference = [
        part["prec1"].sort_index().to_numpy()
        for method in METHODS
        for part in [table[table["without_draw"] == f"W4 int {method} n32"]]
    ]
    by_draw = difference[1] - difference[0]
    assert pair["difference"] == pytest.approx(by_draw.mean()) and pair["difference_sd"] == pytest.approx(by_draw.std(ddof=1))
    assert pair["ci_low"] < pair["difference"] < pair["ci_high"] and pair["p_holm"] == pair["p_value"] < 1e-6


def test_the_report_says_so_and_can_be_verified(rows, write, tmp_path):
    runs_dir = write(rows)
    report = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", figures=False)
    page, text = (report.folder / "report.html").read_text(), (report.folder / "table.md").read_text()
    for words in ("Repeated draws", "A draw of calibration images moves Prec@1 by", "Over 3 draws of calibration images, mean",
                  "the best W4 on average is W4 int mse n32", "over new draws, for these images alone, not adjusted",
                  "shown to be less accurate: W4 int minmax n32",
                  "1 copy learned from one draw of calibration images", "Holm over all 10 pairs of rows"):  # fmt: skip
        assert words in page and words in text, words
    assert len(pd.read_csv(report.folder / "table.csv")) == 9 and text.count("draw_1") == 0
    done = verify_tables("exp", runs_dir=tmp_path / "none", results_dir=tmp_path / "results")
    assert not done.wrong and done.equal["draws.csv", "difference"] == 1, done
    file = report.folder / "draws.csv"
    frame = pd.read_csv(file)
    frame.assign(ci_low=frame["ci_low"] - 1).to_csv(file, index=False)
    assert "draws.csv" in verify_tables("exp", runs_dir=tmp_path / "none", results_dir=tmp_path / "results").wrong[0]
    for name in ("draws.csv", "seeds.csv", "pairs.csv"):
        kept = (report.folder / name).read_bytes()
        (report.folder / name).unlink()
        wrong = verify_tables("exp", runs_dir=tmp_path / "none", results_dir=tmp_path / "results").wrong
        assert f"{name}: it is missing" in " ".join(wrong), wrong
        (report.folder / name).write_bytes(kept)


def test_the_headline_says_over_how_many_draws(predicted, rows, write, tmp_path):
    runs_dir = write([row for row in rows if row.get("variant") != "W8 int" and row.get("name") != "W8 int"])
    page = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", figures=False).folder / "report.html"
    assert re.search(r"<b>W8 int once</b>.*less than half a point.*, one draw of calibration images", page.read_text())


def test_means_over_draws_lead(predicted, write, tmp_path):
    copies = {f"W4 int n32{word}": HARD < share for word, share in (("", 0.849), (" draw_1", 0.85), (" draw_2", 0.851))}
    rows = named(predicted({"fp32": HARD < 0.85} | copies, folder=tmp_path / "runs"))
    report = write_report("exp", runs_dir=write(rows), results_dir=tmp_path / "results", figures=False)
    page = (report.folder / "report.html").read_text()
    assert re.search(r"<b>W4 int n32</b>.*points, mean \+- sd over 3 draws of calibration images", page)


def test_seeds_with_draws_each_have_a_table_without_controls(rows, write, tmp_path):
    """A count of draws that the float network lacks is an empty cell; a control is in no family of tests."""
    copies = [
        row
        | {name: row[name] + "f" for name in ("variant_key", "run")}
        | {"mode": "float", "variant": row["variant"].replace(" int ", " float "), "named": row["named"] | {"way": "float"}}
        for row in rows
        if row["kind"] == "record" and " minmax " in row["variant"]
    ]
    rows = [*rows, *copies]
    other = [row | {"run": row["run"].replace("a1b2", "ffff"), "seed": 1} for row in rows]
    other = [row | {"training": row["training"].replace("a1b2", "ffff")} if "training" in row else row for row in other]
    other = [row | {"params": row["params"] | {"seed": 1}} if "params" in row else row for row in other]
    report = write_report("exp", runs_dir=write(rows, other), results_dir=tmp_path / "results", figures=False)
    seeds = pd.read_csv(report.folder / "seeds.csv")
    assert seeds["num_draws"].isna().any() and set(seeds["num_draws"].dropna()) == {3}
    if (report.folder / "draws.csv").exists():
        pairs = pd.read_csv(report.folder / "draws.csv")
        assert not (pairs["a"].str.contains("float") | pairs["b"].str.contains("float")).any()
    assert "on average is W4 float" not in report.table


def test_what_has_other_draws_is_not_called_alike(rows, write, tmp_path):
    kept = [row for row in rows if not (row["kind"] == "record" and row["variant"] == "W4 int mse n32 draw_2")]
    report = write_report("exp", runs_dir=write(kept), results_dir=tmp_path / "results", figures=False)
    text = " ".join(report.table.split())
    assert "not compared, as draws, images or epochs are others: W4 int minmax n32" in text and "over 0 pairs" in text
