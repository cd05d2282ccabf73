from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qexp.base.errors import UserError
from qexp.report import ReportSettings, run
from qexp.reporting import report
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import FILE, keys_of, load_predictions, read_compact, write_compact
from qexp.reporting.statistics.verify import verify_tables

ROOT = Path(__file__).resolve().parents[3]
IMAGES = np.arange(2000)
RIGHT = {"fp32": IMAGES < 1800, "W8 int": IMAGES < 1790, "W4 int": (IMAGES > 100) & (IMAGES < 1850)}


@pytest.fixture
def reported(tmp_path, predicted, write):
    """The tables of two seeds; returns (runs_dir, results_dir)."""
    parts = [
        predicted(RIGHT, training=f"{seed}{seed}" * 8, folder=tmp_path / "runs", seed=seed, epoch=3, time_ms=seed)
        for seed in (1, 2)
    ]
    runs_dir = write(*parts)
    report.write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", figures=False)
    return runs_dir, tmp_path / "results"


def test_compact_predictions_come_back(tmp_path, predicted, write):
    classes = np.where(IMAGES % 7 == 0, -1, IMAGES % 10)
    rows = predicted(RIGHT | {"W2 int": classes == IMAGES % 10}, folder=tmp_path / "runs", top1={"W2 int": classes})
    runs_dir = write(rows)
    records = load_records("exp", runs_dir)
    stored = load_predictions(records, runs_dir)
    path, digest = write_compact(tmp_path / "results", [records], records, stored)
    again, floats = read_compact(path)
    for key in keys_of(records):
        for name in ("index", "label", "top1", "right5"):
            np.testing.assert_array_equal(getattr(again.by_key[key], name), getattr(stored.by_key[key], name))
    assert list(floats.values()) == [keys_of(records[records["variant"] == "fp32"])[0]]
    assert path.stat().st_size < 1.3 * len(rows) * len(IMAGES) + 8000
    assert write_compact(tmp_path / "results", [records], records, stored) == (path, digest)


@pytest.mark.parametrize("classes", [10, 255, 256, 1000])
def test_any_number_of_classes(tmp_path, predicted, write, classes):
    runs_dir = write(predicted(RIGHT, folder=tmp_path / "runs", classes=classes))
    records = load_records("exp", runs_dir)
    stored = load_predictions(records, runs_dir)
    path, _ = write_compact(tmp_path / "results", [records], records, stored)
    again, _ = read_compact(path)
    key = keys_of(records)[2]
    np.testing.assert_array_equal(again.by_key[key].top1, stored.by_key[key].top1)


def test_nothing_stored_is_no_file(tmp_path, predicted, write):
    runs_dir = write(predicted(RIGHT))
    (tmp_path / FILE).write_text("of an earlier report")
    records = load_records("exp", runs_dir)
    assert write_compact(tmp_path, [records], records, load_predictions(records, runs_dir)) is None
    assert not (tmp_path / FILE).exists()


def test_a_changed_file_is_refused(reported):
    path = reported[1] / "exp" / FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="It was changed"):
        read_compact(path)


def test_a_table_is_verified_by_what_lies_beside_it(reported, tmp_path):
    result = verify_tables("exp", runs_dir=tmp_path / "none", results_dir=reported[1])
    assert result.wrong == []
    for column in ("prec1", "prec5", "n", "prec1_low"):
        assert result.equal["table.csv", column] == 6
    for column in ("delta_prec1", "ci_low", "p_value", "p_holm", "loss_bound", "non_inferior"):
        assert result.equal["table.csv", column] == 4
    assert result.equal["seeds.csv", "delta_low"] == 3 and result.equal["pairs.csv", "ci_low"] == 15
    assert ("table.csv", "loss") not in result.equal
    assert {"kl", "logit_sqnr_db", "size_bytes", "table.csv, loss of 6 rows"} <= set(result.left)


def test_the_store_gives_the_loss_too(reported):
    result = verify_tables("exp", runs_dir=reported[0], results_dir=reported[1])
    assert result.wrong == [] and result.equal["table.csv", "loss"] == 6


@pytest.mark.parametrize(
    ("column", "file"),
    [("prec1", "table.csv"), ("ci_high", "table.csv"), ("p_holm", "table.csv"), ("vs_best", "table.csv"), ("prec5", "epochs.csv"),
     ("prec1_mean", "seeds.csv"), ("delta_low", "seeds.csv"), ("p_value", "pairs.csv")],
)  # fmt: skip
def test_a_wrong_number_is_found(reported, tmp_path, column, file):
    path = reported[1] / "exp" / file
    header, *lines = path.read_text().splitlines()
    place = header.split(",").index(column)
    cells = lines[-1].split(",")
    cells[place] = "best" if column == "vs_best" else str(float(cells[place] or 0) + 5)
    path.write_text("\n".join([header, *lines[:-1], ",".join(cells)]) + "\n")
    wrong = verify_tables("exp", runs_dir=tmp_path / "none", results_dir=reported[1]).wrong
    assert any(line.startswith(f"{file}, ") and f": {column} is " in line for line in wrong)


def test_what_an_earlier_version_computed_otherwise_is_not_called_wrong(reported, tmp_path):
    """Its table has no column `equivalent`: its families and intervals were others, all else is as it was."""
    path = reported[1] / "exp" / "table.csv"
    table = pd.read_csv(path).drop(columns=["equivalent", "p_loss_holm", "p_equivalent"])
    table.assign(ci_low=-9.0, p_holm=0.9, vs_best="=", non_inferior=True).to_csv(path, index=False)
    result = verify_tables("exp", runs_dir=tmp_path / "none", results_dir=reported[1])
    (names,) = (names for names, why in result.left.items() if "an earlier version" in why and "name=exp" in why)
    assert names == "p_holm, non_inferior, vs_best, ci_low, ci_high" and result.wrong == []
    assert result.equal["table.csv", "p_value"] == 4 and ("table.csv", "ci_low") not in result.equal


def test_a_store_with_other_evaluations_does_not_count(reported, predicted, write, tmp_path):
    """The same experiment measured again elsewhere: same keys, other times, other answers."""
    other = {name: np.roll(values, 17) for name, values in RIGHT.items()}
    rows = predicted(other, training="11" * 8, folder=tmp_path / "runs", seed=1, epoch=3, time_ms=999)
    runs_dir = write(rows)
    assert verify_tables("exp", runs_dir=runs_dir, results_dir=reported[1]).wrong == []


def test_exit_codes(reported, tmp_path, capsys):
    settings = ReportSettings(name="exp", verify=True, runs_dir=str(tmp_path / "none"), results_dir=str(reported[1]))
    assert run(settings) == 0
    assert "numbers are what the stored predictions give" in capsys.readouterr().out
    path = reported[1] / "exp" / "table.csv"
    good = path.read_text()
    path.write_text(good.replace(",90,", ",91,", 1))
    assert run(settings) == 1
    assert "WRONG table.csv" in capsys.readouterr().out
    path.write_text(good)
    (reported[1] / "exp" / FILE).unlink()
    with pytest.raises(UserError, match="predictions are stored"):
        run(settings)


@pytest.mark.parametrize("name", ["cifar10-jpeg", "mnist5k"])
def test_committed_tables_hold(name, tmp_path):
    result = verify_tables(name, runs_dir=tmp_path, results_dir=ROOT / "results" / "published")
    assert result.wrong == [] and result.equal["table.csv", "prec1"] >= 4
    assert not [what for what in result.left if what.startswith("table.csv") and "rows" in what and "loss" not in what]


def test_a_table_of_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="a table of evaluations"):
        verify_tables("scalar", runs_dir=tmp_path, results_dir=ROOT / "results" / "published")
