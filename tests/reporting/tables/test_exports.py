"""Fidelity stages and costs from the rows of a journal to tables."""

import csv
import math

import pytest
from matplotlib.collections import LineCollection, PathCollection

from qexp.reporting.figures.cost import bops_points, latency_points, prec1_by_bops, prec1_by_cost
from qexp.reporting.tables.agreement import agreement_sentences
from qexp.reporting.tables.exports import format_exports, load_exports, write_exports
from qexp.tracking import rows
from qexp.tracking.journal import Journal


def stage(name, **more):
    values = {"prec1": 90.0, "prec5": 99.0, "n": 100, "agreement": 0.99, "logit_sqnr_db": 40.0, "max_steps": None}
    blank = {"first_difference": None, "layer_steps": None, "failed_layer": None, "passed": None, "n_codes": 0, "note": ""}
    return {"name": name, "version": "", **values, **blank, **more}


def cost(network, batch, median):
    ends = {"median_ms": median, "low_ms": median - 0.1, "high_ms": median + 0.1, "repeats": 9, "peak_bytes": None}
    return {"runtime": "ort", "version": "1", "network": network, "batch": batch, "images_per_s": 1e3 / median, **ends}


FAILED = stage("ort", version="1", passed=False, failed_layer="conv2", n_codes=50, max_steps=7)


def values(**more):
    return {
        "asked": "a", "variant": "W8A8 int", "training": "t1", "file": "runs/x/network.onnx", "digest": "d", "split": "test",
        "n": 100, "simulate": "exact", "requantization": "float32", "threads": 1, "cpu": "a CPU",
        "sizes": {"fp32": 4 * 2**20, "file": 2**20, "packed": 2**20},
        "rungs": [stage("fp32"), stage("simulated"), FAILED],
        "cost": [cost("fp32", 1, 3.0), cost("quantized", 1, 1.0)],
        "layers": [{"layer": "conv", "macs": 10**6, "weight_bits": 8, "act_bits": 8, "bops": 64 * 10**6}],
        "alarms": ["ort at conv2"], "notes": ["stays | float"], **more,
    }  # fmt: skip


@pytest.fixture
def exports(tmp_path):
    journal = Journal.of(tmp_path, "exp")
    journal.append([rows.export_row("t1/v1", key="k1", values=values(n=1)), rows.export_row("t1/v1", key="k1", values=values())])
    journal.append([rows.export_row("t1/v2", key="k1", values=values(variant="W4A4 int", cost=[], alarms=[], notes=[]))])
    return load_exports("exp", tmp_path)


def test_the_last_measurement_of_each_counts(exports):
    assert [(row["run"], row["n"]) for row in exports] == [("t1/v1", 100), ("t1/v2", 100)]


def test_files(exports, tmp_path):
    written = write_exports("exp", exports, tmp_path / "results")
    assert [path.name for path in written] == ["stages.csv", "cost.csv", "layers.csv", "stages.md"]
    lines = {path.name: list(csv.DictReader(path.read_text().splitlines())) for path in written[:3]}
    assert [(row["variant"], row["name"]) for row in lines["stages.csv"]] == [
        (variant, name) for variant in ("W8A8 int", "W4A4 int") for name in ("fp32", "simulated", "ort")
    ]
    assert lines["stages.csv"][2]["failed_layer"] == "conv2" and lines["stages.csv"][0]["passed"] == ""
    assert [row["speedup"] for row in lines["cost.csv"]] == ["", "3"] and lines["cost.csv"][1]["fp32_bytes"] == str(4 * 2**20)
    assert sum(int(row["bops"]) for row in lines["layers.csv"]) == 2 * 64 * 10**6
    text = written[3].read_text()
    assert "n = 100 (test), simulate exact, 1 thread; file 1.000 MiB, fp32 4.000 MiB (4.00 times)" in text
    assert "| ort | 1 | 100 | 90.00 | 99.00 | 99.00 | 40.0 | 50 | 7 | FAIL conv2 |" in text
    assert "ALARM: ort at conv2" in text and "*fp32* is the same network" in text


def test_steps_of_codes_side_by_side(exports, tmp_path):
    point = {
        "stage": "ort", "point": "relu", "num_codes": 1000, "differ_pct": 1.2, "steps": [0, 2, 5, 988, 5, 0, 0], "max_steps": 2,
        "alone_differ_pct": 0.0, "alone_steps": [0, 0, 0, 1000, 0, 0, 0], "alone_max_steps": 0,
    }  # fmt: skip
    write_exports("exp", [{**exports[0], "codes": [point, {**point, "stage": "other"}]}], tmp_path)
    rows = list(csv.DictReader((tmp_path / "points.csv").read_text().splitlines()))
    assert [(row["stage"], row["minus_2"], row["plus_1"], row["alone_equal"]) for row in rows] == [
        ("ort", "2", "5", "1000"), ("other", "2", "5", "1000"),
    ]  # fmt: skip
    text = (tmp_path / "stages.md").read_text()
    assert "| codes that differ % | ort | other |" in text and "| relu | 1.200 (0) | 1.200 (0) |" in text


def test_what_is_gone_is_removed(exports, tmp_path):
    write_exports("exp", exports, tmp_path)
    assert [path.name for path in write_exports("exp", exports[1:], tmp_path)] == ["stages.csv", "layers.csv", "stages.md"]
    assert not (tmp_path / "cost.csv").exists()
    assert write_exports("exp", [], tmp_path) == [] and not (tmp_path / "stages.md").exists()


def test_the_screen(exports):
    lines = format_exports(exports).splitlines()
    assert lines[0].startswith("W8A8 int: n = 100") and "ALARM: ort at conv2" in lines
    assert any(line.split() == ["ort", "quantized", "1", "1.000", "0.900", "1.100", "1000.0", "3.00"] for line in lines)


def test_a_sentence_says_whether_a_runtime_agrees(exports):
    assert "ort does not agree, first at conv2: 99 of 100 predictions equal the simulation's." in format_exports(exports)
    passed = stage("ort", version="1", agreement=1.0, passed=True, num_planned=20, num_integer=20)
    assert [*agreement_sentences({**exports[0], "rungs": [stage("simulated"), passed, stage("lite", version="2")]})] == [
        "ort agrees: 100 of 100 predictions equal the simulation's, every layer within one step of integers, "
        "20 of 20 layers computed in integers.",
        "lite was compared by its predictions alone: 99 of 100 predictions equal the simulation's.",
    ]


def test_exact_logits_are_called_so(exports):
    exact = [{**exports[0], "rungs": [stage("fp32", logit_sqnr_db=math.inf)]}]
    assert "exact" in format_exports(exact)


def test_a_point_for_each_network_in_each_runtime(exports):
    points = latency_points(exports)
    assert points.to_numpy().tolist() == [["fp32", "ort", 3.0, 90.0, 100], ["W8A8 int", "ort", 1.0, 90.0, 100]]
    figure = prec1_by_cost(exports)
    (front,) = figure.axes[0].lines
    markers = [drawn for drawn in figure.axes[0].collections if isinstance(drawn, PathCollection)]
    assert list(front.get_xdata()) == [1.0] and [drawn.get_offsets()[:, 0].tolist() for drawn in markers] == [[3.0], [1.0]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["fp32", "W8A8 int", "ort", "Pareto front"]
    # The interval of 90 right among 100.
    bars = [drawn for drawn in figure.axes[0].collections if isinstance(drawn, LineCollection)]
    assert len(bars) == 2
    for bar in bars:
        assert bar.get_segments()[0][:, 1] == pytest.approx([82.56, 94.48], abs=0.01)
    assert prec1_by_cost(exports[1:]) is None


def test_bit_operations_stand_for_a_network_whatever_runs_it(exports):
    better = [
        {**exports[1], "rungs": [stage("fp32", prec1=91.0), stage("simulated", prec1=80.0), stage("evaluated", prec1=85.0)]}
    ]
    points = bops_points([exports[0], *better])
    assert points[["network", "cost", "prec1"]].to_numpy().tolist() == [
        ["fp32", 1.024, 90.0], ["W8A8 int", 0.064, 90.0], ["fp32", 1.024, 91.0], ["W4A4 int", 0.064, 85.0],
    ]  # fmt: skip
    drawn = prec1_by_bops(exports).axes[0]
    assert len(drawn.lines) == 1 and sum(isinstance(one, PathCollection) for one in drawn.collections) == 3
    assert prec1_by_bops([]) is None and prec1_by_bops([{**exports[0], "layers": []}]) is None
