"""Whole reports on sweeps whose truth is known: what is equal is called so, what is not is told apart, intervals cover."""

import csv
import re

import numpy as np
import pandas as pd
import pytest

from qexp.reporting.frames.predictions import Predictions, StoredPredictions, float_keys
from qexp.reporting.report import write_report
from qexp.reporting.statistics.paired import with_statistics

N = 10_000


def flipped(plain, lost, gained, generator):
    """Predictions wrong on so many images that `plain` gets right, drawn at random, and right on so many that it gets wrong."""
    right = plain.copy()
    right[generator.permutation(np.flatnonzero(plain))[:lost]] = False
    right[generator.permutation(np.flatnonzero(~plain))[:gained]] = True
    return right


@pytest.fixture
def report(tmp_path, predicted, write):
    """Write the report of a float network with 90 % and of copies: W8 and W6 alike, W4 two points below, with their flips."""
    generator = np.random.default_rng(11)
    plain = generator.random(N) < 0.9
    same = flipped(plain, 40, 40, generator)
    right = {
        "fp32": plain,
        "W8 int": same,
        "W6 int": same,  # the same scheme by another name
        "W5 int": flipped(plain, 40, 40, generator),  # as good, wrong on other images
        "W4 int": flipped(plain, 500, 300, generator),
    }
    return write_report("exp", runs_dir=write(predicted(right, folder=tmp_path / "runs")), results_dir=tmp_path / "results")


def test_what_is_equal_is_called_so_and_two_points_are_told_apart(report):
    with (report.folder / "table.csv").open() as file:
        table = {row["variant"]: row for row in csv.DictReader(file)}
    assert float(table["W4 int"]["delta_prec1"]) == pytest.approx(-2.0) and table["W4 int"]["n"] == str(N)
    for name in ("W8 int", "W6 int", "W5 int"):
        assert (
            float(table[name]["p_holm"]) > 0.05
            and table[name]["vs_best"] in ("not separated", "best")
            and table[name]["non_inferior"] == "True"
        )
        assert float(table[name]["ci_low"]) < 0 < float(table[name]["ci_high"])
    assert float(table["W4 int"]["p_holm"]) < 1e-6 and table["W4 int"]["vs_best"] == "worse"
    assert float(table["W4 int"]["ci_high"]) < -1 and table["W4 int"]["non_inferior"] == "False"

    with (report.folder / "pairs.csv").open() as file:
        pairs = {frozenset((row["a"], row["b"])): row for row in csv.DictReader(file)}
    twins = pairs[frozenset(("W8 int", "W6 int"))]
    assert (twins["difference"], twins["lost"], twins["gained"], twins["p_value"]) == ("0", "0", "0", "1")
    for name in ("fp32", "W8 int", "W6 int", "W5 int"):
        assert float(pairs[frozenset((name, "W4 int"))]["p_holm"]) < 1e-6

    pages = [(report.folder / name).read_text(encoding="utf-8") for name in ("table.md", "report.html")]
    for text in (report.table, *pages):
        words = " ".join(text.split())
        assert "1 of 4 is shown to differ from fp32" in words and ": W4 int (-2.00); not significantly different: " in words
    row = next(line for line in pages[0].splitlines() if line.startswith("| W4 int"))
    assert "| worse |" in row and len(re.findall(r"\| (?:not significant|best) \|", pages[0])) == 4


def test_intervals_of_a_report_cover():
    """2000 test sets are drawn anew; each is a row of one report, whose true difference and accuracy are known."""
    count, n, lost, gained, both = 2000, 1000, 0.03, 0.02, 0.85
    generator = np.random.default_rng(5)
    # Images are right in both, in the float network alone, in the copy alone, or in neither.
    kind = generator.choice(4, size=(count, n), p=(both, lost, gained, 1 - both - lost - gained))
    index, label = np.arange(n), np.zeros(n, dtype=np.int64)
    stored, rows = StoredPredictions(), []
    for number, drawn in enumerate(kind):
        for variant, right in (("fp32", (drawn == 0) | (drawn == 1)), ("W4 int", (drawn == 0) | (drawn == 2))):
            rows.append(
                {"training": f"{number}", "variant": variant, "variant_key": variant, "epoch": 1, "split": "test", "n": n}
            )
            rows[-1]["prec1"] = 100 * int(right.sum()) / n
            stored.by_key[(f"{number}", variant, 1, "test", n)] = Predictions(index, label, np.where(right, 0, 1), right)
    frame = pd.DataFrame(rows)
    stored.floats.update(float_keys(frame))
    frame = with_statistics(frame, stored)
    copies = frame[frame["variant"] == "W4 int"]
    held = copies["ci_low"].le(100 * (gained - lost)) & copies["ci_high"].ge(100 * (gained - lost))
    assert len(held) == count and 0.93 <= held.mean() <= 0.97
    for variant, truth in (("fp32", 100 * (both + lost)), ("W4 int", 100 * (both + gained))):
        alone = frame[frame["variant"] == variant]
        assert 0.93 <= (alone["prec1_low"].le(truth) & alone["prec1_high"].ge(truth)).mean() <= 0.97
