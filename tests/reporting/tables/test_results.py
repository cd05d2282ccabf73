import csv
import statistics
from pathlib import Path

import pandas as pd
import pytest

from qexp.base.errors import UserError
from qexp.base.table import RENDERERS
from qexp.report import ReportSettings, run
from qexp.reporting.frames.load import load_records, load_sweeps
from qexp.reporting.frames.predictions import StoredPredictions, float_keys
from qexp.reporting.frames.summary import seed_table, summarize
from qexp.reporting.statistics.paired import with_statistics
from qexp.reporting.statistics.verdict import compare_variants
from qexp.reporting.tables.results import format_table, markdown, write_tables

AT_LEAST = (
    "training variant bits mode policy quant granularity seed epoch prec1 prec5 loss delta_prec1 n size_bytes state".split()
)


def _table(runs_dir):
    return summarize(load_records("exp", runs_dir))


def test_order_and_columns(write, training):
    variants = ["W4 float", "W2 int", "W4 int", "W16 half", "W16 int"]
    table = _table(write(training(variants), training(["W8 int"], training="bb" * 8, params={"train.lr": 0.01})))
    assert table["variant"].tolist() == ["fp32", "W16 int", "W16 half", "W4 int", "W4 float", "W2 int", "fp32", "W8 int"]
    assert set(AT_LEAST) <= set(table.columns)
    assert table["epoch"].unique().tolist() == [8]


def test_half_has_no_quantizer_and_needs_no_column(write, training):
    text = format_table(_table(write(training(["W16 half", "W16 int", "W4 int"]))))
    assert "quant linear, granularity per_tensor" in text.splitlines()[0]
    assert "half" in format_table(_table(write(training(["W16 half"]))))


def test_families_stay_together(write, training, record):
    rows = training(["W8 int", "W4 int"])
    for bits in (4, 8):
        per_channel = {
            "variant": f"W{bits} pc",
            "variant_key": f"pc{bits}",
            "granularity": "per_channel",
            "plan_hash": f"pc{bits}",
        }
        rows.append(record(f"W{bits} int", 8) | per_channel)
    assert _table(write(rows))["variant"].tolist() == ["fp32", "W8 int", "W4 int", "W8 pc", "W4 pc"]


def test_equal_plans_are_one_row_with_a_note(write, training, record):
    rows = training(["W8 int", "W8 float"])
    twins = [row | {"variant": row["variant"] + " conv_linear", "variant_key": "c" + row["variant_key"], "run": row["run"] + "c"}
             for row in rows if row["kind"] == "record" and row["variant"] != "fp32"]  # fmt: skip
    table = _table(write(rows, twins)).set_index("variant")
    assert table.index.tolist() == ["fp32", "W8 int", "W8 float", "W8 float conv_linear"]
    assert table.loc["W8 int", "notes"] == ("same plan: W8 int conv_linear",)
    assert table.loc["W8 float", "notes"][0].startswith("control")


def test_equal_plans_with_other_numbers_are_not_merged(write, record):
    twin = record() | {"variant": "again", "variant_key": "k2", "run": "r2", "prec1": 12.0}
    assert len(_table(write([record(plan_hash="p"), twin | {"plan_hash": "p"}]))) == 2


def test_partial_variants(write, training):
    rows = training(["W8 int", "W4 int", "W2 int"])
    rows = [row for row in rows if not (row.get("variant") == "W4 int" and row["epoch"] > 3)]
    rows = [row for row in rows if not (row.get("variant") == "W2 int" and row["epoch"] < 8)]
    table = _table(write(rows)).set_index("variant")
    assert table["state"].to_dict() == {"fp32": "done", "W8 int": "done", "W4 int": "partial", "W2 int": "done"}
    assert table["epoch"].to_dict()["W4 int"] == 3
    assert table["notes"].to_dict()["W2 int"] == ("1 of 8 epochs",)


def test_a_training_that_was_cut_short_is_partial(write, training):
    rows = training(["W8 int"])
    rows = [row for row in rows if row["kind"] != "record" or row["epoch"] <= 5]
    assert set(_table(write(rows))["state"]) == {"partial"}


def test_without_planned_epochs_the_float_network_decides(write, training):
    rows = [row for row in training(["W8 int", "W4 int"]) if not (row.get("variant") == "W4 int" and row["epoch"] > 3)]
    rows = [row | {"planned_epochs": None} if row["kind"] == "run" else row for row in rows]
    assert _table(write(rows)).set_index("variant")["state"].to_dict() == {"fp32": "done", "W8 int": "done", "W4 int": "partial"}


def test_alarms_of_all_epochs_are_told(write, training):
    rows = training(["W8 int", "W4 int"])
    for row in rows:
        if row.get("variant") == "W8 int" and row["epoch"] <= 2:
            row["alarms"] = ["logits equal those of W4 int"]
        if row.get("variant") == "W4 int":
            row["alarms"] = ["logits are not finite"]
    table = _table(write(rows))
    twice = "logits equal those of W4 int (in 2 of 8 epochs, last in 2)"
    assert table["alarms"].tolist() == [(), (twice,), ("logits are not finite",)]
    text = format_table(table)
    assert "W8 int [1]" in text and "[1] ALARM: logits equal those of W4 int (in 2 of 8 epochs, last in 2)" in text
    assert text.endswith("[2] ALARM: logits are not finite")


def test_screen_table(write, record, training):
    rows = [
        training([], epochs=1)[0],
        record("fp32", prec1=97.456, size_bytes=1024 * 1024, loss=0.08123),
        record("W8 int", prec1=97.4, delta_prec1=-0.056, size_bytes=262144, kl=0.00001234, loss=float("nan")),
        record("W8 float", prec1=97.5, delta_prec1=0.044, kl=0.0),
    ]
    assert format_table(_table(write(rows))).splitlines() == [
        "mnist5k, resnet20, policy uniform, quant linear, granularity per_tensor, split test, n = 1000, seed 0, epoch 1",
        "",
        "variant   bits  mode             Prec@1  Prec@5  delta    loss       KL  SQNR dB    MiB",
        "--------  ----  ---------------  ------  ------  -----  ------  -------  -------  -----",
        "fp32        32                    97.46   99.90         0.0812                    1.000",
        "W8 int       8  int               97.40   99.90  -0.06     nan  1.2e-05     38.0  0.250",
        "W8 float     8  float (control)   97.50   99.90  +0.04  0.1000   0.0000     38.0  0.257",
    ]


def test_only_what_differs_is_a_column(write, training):
    text = format_table(_table(write(training(["W8 int", "W4 int"]))))
    assert "policy uniform" in text.splitlines()[0] and "training" not in text
    two = format_table(_table(write(training(["W8 int"]), training(["W8 int"], training="bb" * 8, params={"train.lr": 0.01}))))
    lines = two.splitlines()
    assert (
        lines[2].startswith("training  variant")
        and lines[4].startswith("lr=0.1    fp32")
        and lines[7].startswith("lr=0.01   W8 int")
    )


def test_repeated_seeds(write, training):
    parts = [training(["W8 int", "W4 int"], training=f"{seed}{seed}" * 8, params={"seed": seed}, seed=seed) for seed in (1, 2, 3)]
    parts.append(training(["W8 int"], training="ff" * 8, params={"seed": 1, "train.lr": 0.01}, seed=1))
    runs_dir = write(*parts)
    table = _table(runs_dir)
    seeds = seed_table(table)
    assert seeds[["group", "variant", "num_seeds"]].values.tolist() == [
        ["lr=0.1", name, 3] for name in ("fp32", "W8 int", "W4 int")
    ]
    values = table[(table["group"] == "lr=0.1") & (table["variant"] == "W4 int")]["prec1"]
    row = seeds.set_index("variant").loc["W4 int"]
    assert row["prec1_mean"] == pytest.approx(statistics.mean(values))
    assert row["prec1_sd"] == pytest.approx(statistics.stdev(values))
    text = markdown("exp", table, seeds)
    assert "## Repeated seeds" in text
    assert f"| W4 int | 4 | int | 3 | {statistics.mean(values):.2f} +- {statistics.stdev(values):.2f} |" in text


def test_files(write, training, tmp_path):
    runs_dir = write(training(["W8 int", "W4 float"]))
    records = load_records("exp", runs_dir)
    folder = tmp_path / "results" / "exp"
    folder.mkdir(parents=True)
    (folder / "seeds.csv").write_text("of an earlier report")
    stored = StoredPredictions(floats=float_keys(records))
    records = with_statistics(records, stored)
    verdict = compare_variants(summarize(records), records, stored)
    paths = write_tables("exp", records, folder, verdict, load_sweeps("exp", runs_dir))
    assert sorted(paths) == ["epochs.csv", "table.csv", "table.md", "table.tex"]
    assert sorted(path.name for path in folder.iterdir()) == ["epochs.csv", "table.csv", "table.md", "table.tex"]
    table = list(csv.DictReader(paths["table.csv"].read_text().splitlines()))
    assert [row["variant"] for row in table] == ["fp32", "W8 int", "W4 float"]
    assert set(AT_LEAST) <= set(table[0])
    last = records[(records["variant"] == "W8 int") & (records["epoch"] == 8)].iloc[0]
    assert float(table[1]["prec1"]) == last["prec1"] and float(table[1]["loss"]) == pytest.approx(last["loss"], rel=1e-9)
    assert table[0]["kl"] == ""
    assert len(list(csv.DictReader(paths["epochs.csv"].read_text().splitlines()))) == 3 * 8
    paper = paths["table.tex"].read_text()
    assert paper.startswith("% exp: mnist5k, resnet20") and "\\toprule" in paper and "\\bottomrule" in paper
    assert "W4 float & 4 & float (control) &" in paper
    text = paths["table.md"].read_text()
    assert "| W4 float | 4 | float (control) |" in text
    assert "`python -m qexp.train bits=4,8 -m` (2023-11-14 22:13 UTC, box" in text


def test_frames_are_left_as_they_were(write, training):
    records = load_records("exp", write(training(["W8 int"])))
    before = records.copy(deep=True)
    summarize(records)
    pd.testing.assert_frame_equal(records, before)


@pytest.mark.parametrize("kind", ["text", *RENDERERS])
def test_the_tables_are_printed_as_asked(write, training, capsys, kind):
    rows = [training(["W4 int"], training=f"{seed}b" * 8, params={"seed": seed}, seed=seed) for seed in (0, 1)]
    run(ReportSettings(name="exp", runs_dir=str(write(*rows)), format=kind))
    out = capsys.readouterr().out
    assert "W4 int" in out and ("tables and figures" in out) == (kind == "text")
    assert out.count("Prec@1") >= (1 if kind == "text" else 2)  # with the means over seeds


def test_an_unknown_format_writes_nothing(write, training):
    with pytest.raises(UserError, match="format=latec.*latex"):
        run(ReportSettings(name="exp", runs_dir=str(write(training(["W4 int"]))), format="latec"))
    assert not Path("results/exp").exists()
