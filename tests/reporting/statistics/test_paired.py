import csv
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from qexp.reporting import report
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import load_predictions
from qexp.reporting.frames.summary import summarize
from qexp.reporting.statistics import pairs as of_rows
from qexp.reporting.statistics.paired import with_statistics
from qexp.reporting.statistics.verdict import compare_variants

N = 10_000
IMAGES = np.arange(N)


def _verdict(runs_dir):
    records = load_records("exp", runs_dir)
    stored = load_predictions(records, runs_dir)
    records = with_statistics(records, stored)
    return compare_variants(summarize(records), records, stored)


@pytest.fixture
def sweep(tmp_path, predicted, write):
    """Judge the training whose variants are right where told."""

    def make(right, **options):
        return _verdict(write(predicted(right, folder=tmp_path / "runs", **options)))

    return make


def test_numbers_against_the_float_network(sweep):
    right = {"fp32": IMAGES < 9000, "W8 int": (IMAGES >= 30) & (IMAGES < 9010), "W4 int": IMAGES < 8800}
    table = sweep(right).table.set_index("variant")
    row = table.loc["W8 int"]
    assert (row["lost"], row["gained"], row["disagreement"]) == (30, 10, 0.4)
    assert row["p_value"] == pytest.approx(binomtest(10, 40).pvalue)
    assert row["delta_prec1"] == pytest.approx(-0.2)
    assert row["ci_low"] < row["delta_prec1"] < row["ci_high"] < 0
    assert row["prec1_low"] < row["prec1"] < row["prec1_high"]
    assert row["non_inferior"] and 0.2 < row["loss_bound"] < 0.5
    assert not table.loc["W4 int"]["non_inferior"]
    # Half of alpha is for the two tests against the float network: the smaller one is four times as large.
    assert table.loc["W4 int"]["p_holm"] == pytest.approx(4 * table.loc["W4 int"]["p_value"])
    assert table.loc["fp32"][["ci_low", "p_value"]].isna().all()


def test_equal_schemes_cannot_be_told_apart_and_two_points_can(sweep):
    """The same answers by two names, and a loss of two points on 10 000 images."""
    same = (IMAGES % 5000 != 7) & (IMAGES < 9000)
    verdict = sweep({"fp32": IMAGES < 9000, "W8 int": same, "W6 int": same, "W4 int": IMAGES < 8800})
    pairs = verdict.pairs.set_index(["a", "b"])
    twins = pairs.loc[("W8 int", "W6 int")]
    assert (twins["difference"], twins["lost"], twins["gained"], twins["p_value"], twins["disagreement"]) == (0, 0, 0, 1.0, 0)
    assert twins["ci_low"] < 0 < twins["ci_high"]
    assert pairs.loc[("fp32", "W4 int")]["p_holm"] < 1e-10
    assert verdict.table.set_index("variant")["vs_best"].to_dict() == {
        "fp32": "best", "W8 int": "not separated", "W6 int": "not separated", "W4 int": "worse",
    }  # fmt: skip
    text = "\n".join(verdict.sentences)
    assert (
        "1 of 3 is shown to differ from fp32 (90.00 %): W4 int (-2.00); "
        "not significantly different: W8 int (-0.02), W6 int (-0.02)" in text
    )
    assert "No row is better than fp32: what holds against it holds against the best." in text
    assert "2 of 3 are shown to lose less than 0.5 points" in text
    assert verdict.gaps == ()


def test_all_pairs_are_there_once(sweep):
    names = ["fp32", "W8 int", "W6 int", "W4 int", "W3 int"]
    verdict = sweep({name: IMAGES < 9000 - 10 * number for number, name in enumerate(names)})
    pairs = {frozenset(pair) for pair in verdict.pairs[["a", "b"]].itertuples(index=False, name=None)}
    assert pairs == {frozenset(pair) for pair in combinations(names, 2)} and len(verdict.pairs) == 10


def test_of_very_many_rows_those_with_float_and_best_are_listed(sweep, monkeypatch):
    monkeypatch.setattr(of_rows, "MAX_PAIRED", 3)
    right = {"fp32": IMAGES < 9000, "W8 int": IMAGES < 9010, "W6 int": IMAGES < 8990, "W4 int": IMAGES < 8800}
    pairs = sweep(right).pairs.set_index(["a", "b"])
    assert ("W6 int", "W4 int") not in pairs.index and len(pairs) == 5
    # Holm is over all six pairs all the same: three with the float network, of half of alpha.
    assert pairs.loc[("W8 int", "W4 int"), "p_holm"] == pytest.approx(6 * pairs.loc[("W8 int", "W4 int"), "p_value"])


def test_disagreement_counts_what_both_get_wrong(sweep):
    right = {"fp32": IMAGES < 9000, "W8 int": IMAGES < 9000}
    other = {"W8 int": np.where(IMAGES < 9000, IMAGES % 10, (IMAGES + 4) % 10)}
    row = sweep(right, top1=other).table.set_index("variant").loc["W8 int"]
    assert (row["lost"], row["gained"], row["disagreement"]) == (0, 0, 10.0)


def test_controls_are_in_no_family(sweep):
    verdict = sweep({"fp32": IMAGES < 9000, "W8 int": IMAGES < 8990, "W8 float": IMAGES < 9100})
    table = verdict.table.set_index("variant")
    assert table.loc["W8 float"][["p_holm"]].isna().all() and table.loc["W8 float"]["vs_best"] == ""
    assert table.loc["W8 int"]["p_holm"] == table.loc["W8 int"]["p_value"]
    assert table.loc["fp32"]["vs_best"] == "best"


def test_what_has_no_predictions_is_said(tmp_path, predicted, write):
    right = {"fp32": IMAGES < 9000, "W8 int": IMAGES < 8990, "W4 int": IMAGES < 8000}
    assert _verdict(write(predicted(right))).gaps == ("No statistics: no predictions were kept.",)
    rows = predicted(right, folder=tmp_path / "runs")
    rows[-1]["predictions"] = None
    verdict = _verdict(write(rows))
    assert verdict.gaps == ("No statistics for W4 int: no predictions were kept.",)
    assert verdict.table.set_index("variant")["p_value"].notna().to_dict() == {"fp32": False, "W8 int": True, "W4 int": False}


def test_predictions_of_another_evaluation_are_not_used(tmp_path, predicted, write):
    rows = predicted({"fp32": IMAGES < 9000, "W8 int": IMAGES < 8990}, folder=tmp_path / "runs")
    rows[-1]["prec1"] = 89.5
    assert "those of another evaluation" in _verdict(write(rows)).gaps[0]


def test_a_damaged_file_is_told(tmp_path, predicted, write):
    rows = predicted({"fp32": IMAGES < 9000, "W8 int": IMAGES < 8990}, folder=tmp_path / "runs")
    path = tmp_path / "runs" / "trainings" / rows[0]["run"] / rows[-1]["predictions"]
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in _verdict(write(rows)).gaps[0]
    path.unlink()
    assert "no longer there" in _verdict(write(rows)).gaps[0]


def test_the_best_epoch_is_the_float_networks(tmp_path, predicted, write):
    store = tmp_path / "runs"
    first = predicted({"fp32": IMAGES < 9100, "W8 int": IMAGES < 9050}, folder=store, epoch=1)
    last = predicted({"fp32": IMAGES < 9000, "W8 int": IMAGES < 9060}, folder=store, epoch=2)
    verdict = _verdict(write(first, last))
    assert verdict.pairs[["epoch", "difference"]].values.tolist() == [["2", 0.6], ["1", -0.5]]


def test_seeds_and_images_together(tmp_path, predicted, write):
    parts = []
    for seed in range(3):
        right = {"fp32": IMAGES < 9000 + 20 * seed, "W4 int": (IMAGES + 100 * seed) % N < 8800 + 20 * seed}
        parts.append(predicted(right, training=f"{seed}{seed}" * 8, folder=tmp_path / "runs", seed=seed))
    verdict = _verdict(write(*parts))
    row = verdict.seeds.set_index("variant").loc["W4 int"]
    assert row["num_seeds"] == 3 and row["delta_prec1_mean"] == pytest.approx(-2.0)
    assert row["delta_low"] < -2.0 < row["delta_high"] and row["prec1_low"] < row["prec1_mean"] < row["prec1_high"]
    assert verdict.sentences[0] == "Over 3 seeds, mean +- sd: fp32 90.20 +- 0.20 %, W4 int 88.20 +- 0.20 % (-2.00 +- 0.00)."
    assert verdict.sentences[1].startswith("3 of 3 are shown to differ from their float network")


def test_the_files_of_a_report(tmp_path, predicted, write):
    right = {"fp32": IMAGES < 9000, "W8 int": (IMAGES > 9) & (IMAGES < 9005), "W4 int": IMAGES < 8000}
    runs_dir = write(predicted(right, folder=tmp_path / "runs"))
    written = report.write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", figures=False)
    table = list(csv.DictReader((written.folder / "table.csv").read_text().splitlines()))
    assert float(table[1]["ci_low"]) < -0.05 < float(table[1]["ci_high"]) and table[1]["vs_best"] == "not separated"
    text = (written.folder / "table.md").read_text()
    assert (
        "| 95 % CI | Holm-adjusted p | flips | differ % | no loss | vs best |" in text and "## Which differences are real" in text
    )
    assert "| 1000/0 |" in text and "1 of 2 is shown to differ from fp32" in written.table
    assert len(list(csv.DictReader((written.folder / "pairs.csv").read_text().splitlines()))) == 3
    assert "p_value" in (written.folder / "epochs.csv").read_text().splitlines()[0]
