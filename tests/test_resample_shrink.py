"""scripts/resample_shrink.py: its race is that of the tests, and what it reads of a folder is what was predicted."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "resample_shrink.py"


@pytest.fixture
def script(monkeypatch):
    before = dict(sys.modules)
    names = runpy.run_path(str(SCRIPT), run_name="resample_shrink")
    assert before.keys() <= sys.modules.keys()
    return names


def test_the_race_takes_the_smallest_that_passes_and_counts_what_it_took(script):
    size = 2000
    bad, good = np.zeros(size, np.int8), np.zeros(size, np.int8)
    bad[::5] = -1
    grid = [script["Candidate"](*row) for row in (("w2", 10, bad), ("w4", 20, good), ("w8", 40, good))]
    one, used = script["race"](grid, np.arange(size), 1.0)
    assert one.label == "w4"
    assert (
        used == 100 + 400 + 400
    )  # a block says that the first loses too much; four that the second does not; and those of float
    assert script["race"](grid[:1], np.arange(size), 1.0) == (None, 200)
    assert script["confirmed"](grid[1], np.arange(size), 1.0) and not script["confirmed"](grid[0], np.arange(size), 1.0)


def test_it_reads_what_an_evaluation_wrote(script, cli, tiny, capsys, monkeypatch):
    done = cli(*tiny, "bits=2,8", "-m", "name=grid")
    assert done.code == 0, done.err
    grid = script["read"](Path("results/grid"))
    with open("results/grid/table.csv") as handle:
        rows = {row["variant"]: row for row in csv.DictReader(handle)}
    assert [one.label for one in grid] == ["W2 int", "W8 int"]
    for one in grid:
        assert one.loss == pytest.approx(-float(rows[one.label]["delta_prec1"]), abs=0.006)
    monkeypatch.setattr(
        sys, "argv", ["x", "results/grid", "--max-loss", "5", "--select", "500", "--confirm", "500", "--draws", "5"]
    )
    assert script["main"]() == 0
    assert "2 candidates, population of 360 images" in capsys.readouterr().out
