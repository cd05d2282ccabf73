"""Numbers of different protocols stand in one table only where that is asked for."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

import qexp
from qexp.base.keyvalue import run_verb
from qexp.report import ReportSettings, run
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.protocol import MixedProtocolsError, find_protocols
from qexp.reporting.report import write_report
from qexp.reporting.statistics.verify import verify_tables
from qexp.sweep.run import report as report_sweep

ONE, OTHER = "a1b2c3d4e5f60718", "bb" * 8


def _marks(runs_dir):
    records = load_records("exp", runs_dir)
    return records["protocol"].tolist() if "protocol" in records else None


@pytest.mark.parametrize(
    "params",
    [
        {"seed": 1},
        {"train.lr": 0.01},
        {"model.name": "resnet56"},
        {"data.augment": "crop_flip"},
        {"data.num_train": 1000},
        {"data.num_calib": 100, "data.num_select": 50},
    ],
)
def test_what_a_sweep_compares_is_one_protocol(write, training, params):
    """Images taken from the training part change the hash of the data, not what is scored on its test part."""
    content = "other" if any(key.startswith("data.num") for key in params) else "d"
    rows = training(["W8 int"], training=OTHER, params=params, data_hash=content)
    assert _marks(write(training(["W8 int"]), rows)) is None


@pytest.mark.parametrize(
    ("params", "changes", "description"),
    [
        ({}, {"n": 500}, "mnist5k, split test, n = 500"),
        ({}, {"split": "select"}, "mnist5k, split select, n = 1000"),
        ({}, {"data_hash": "e"}, "mnist5k, content e, split test, n = 1000"),
        ({"data.name": "cifar10"}, {"data_hash": "e"}, "cifar10, split test, n = 1000"),
        ({"data.mean": "[0.5]", "data.std": "[0.5]"}, {"data_hash": "e"}, "mnist5k, mean [0.5], std [0.5], split test, n = 1000"),
        ({"data.image_size": 16}, {"data_hash": "e"}, "mnist5k, image_size 16, split test, n = 1000"),
        ({"data.crop": "none"}, {"data_hash": "e"}, "mnist5k, crop none, split test, n = 1000"),
    ],
)
def test_other_protocols_are_refused(write, training, tmp_path, params, changes, description):
    runs_dir = write(training(["W8 int"]), training(["W8 int"], training=OTHER, params=params, **changes))
    with pytest.raises(MixedProtocolsError) as caught:
        write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results")
    assert f"B: {description})" in str(caught.value) and "name=exp mixed=true" in str(caught.value)
    assert not (tmp_path / "results").exists()
    marks = load_records("exp", runs_dir).groupby("training")["protocol"].unique()
    assert [marks[ONE].tolist(), marks[OTHER].tolist()] == [["A"], ["B"]]


def test_a_test_part_that_is_cut_from_the_images_depends_on_the_cut(write, training):
    cut = {"data.num_test": 500}
    other = training(["W8 int"], training=OTHER, params=cut | {"data.split_seed": 1}, data_hash="e")
    assert _marks(write(training(["W8 int"], params=cut), other)) is not None
    other = training(["W8 int"], training=OTHER, params={"data.split_seed": 1}, data_hash="e")
    assert _marks(write(training(["W8 int"]), other)) is None  # the set's own part is not cut


def test_where_it_is_asked_for_rows_are_marked(tmp_path, predicted, write):
    images = np.arange(2000)
    right = {"fp32": images < 1800, "W4 int": images < 1700}
    few = {name: values[:500] for name, values in right.items()}
    folder = tmp_path / "runs"
    runs_dir = write(predicted(right, folder=folder), predicted(few, folder=folder, training=OTHER, seed=1))
    report = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", mixed=True)
    with (report.folder / "table.csv").open() as file:
        assert [row["protocol"] for row in csv.DictReader(file)] == list("AABB")
    with (report.folder / "epochs.csv").open() as file:
        assert {(row["protocol"], row["n"]) for row in csv.DictReader(file)} == {("A", "2000"), ("B", "500")}
    texts = {name: (report.folder / name).read_text(encoding="utf-8") for name in ("table.md", "report.html")}
    for text in (report.table, *texts.values()):
        assert "Rows of different protocols stand here side by side" in text
        assert "A: mnist5k, split test, n = 2000." in text and "B: mnist5k, split test, n = 500." in text
        assert "mnist5k, test, protocol B: " in text.replace("\n", " ")
    assert "| protocol |" in texts["table.md"] and '<th class="left">protocol</th>' in texts["report.html"]
    assert 'class="facts"' not in texts["report.html"]  # no headline picks a row among numbers that are no comparison
    assert set(qexp.load("exp", runs_dir)["protocol"]) == {"A", "B"}


THIRD = "cc" * 8
ASKED = {"evaluate.across": "preprocessing", "evaluate.files": "f"}


def _with_params(rows, **params):
    return [row | {"params": row["params"] | params} if row["kind"] == "run" else row for row in rows]


@pytest.fixture
def three_ways(tmp_path, predicted, write):
    """Three preprocessings of 2000 files: fp32 1800, 1760 and 1800 right, W8 int 1790, 1750 and 1500."""
    images, folder = np.arange(2000), tmp_path / "runs"
    right = [
        {"fp32": images < 1800, "W8 int": images < 1790},
        {"fp32": (images >= 20) & (images < 1780), "W8 int": images < 1750},
    ]
    right.append({"fp32": images < 1800, "W8 int": images < 1500})
    ways = [(ONE, {}), (OTHER, {"data.interpolation": "nearest"}), (THIRD, {"data.mean": "[0.5]"})]

    def make(*changes):
        groups = []
        for number, (rows, (training, way)) in enumerate(zip(right, ways, strict=True)):
            made = predicted(rows, folder=folder, training=training, data_hash=f"d{number}")
            more = changes[number] if changes else {}
            groups.append(_with_params(made, **{"data.interpolation": "bicubic"} | ASKED | way | more))
        return write(*groups)

    return make


def test_preprocessing_is_compared_where_that_is_asked_about(three_ways, tmp_path):
    report = write_report("exp", runs_dir=three_ways(), results_dir=tmp_path / "results", figures=False)
    with (report.folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = [(row["protocol"], row["variant"], float(row["delta_prec1"]), row["lost"], row["gained"]) for row in rows]
    # A float network against that of A, a copy against its own float network.
    assert told == [
        ("A", "fp32", 0.0, "", ""), ("A", "W8 int", -0.5, "10", "0"),
        ("B", "fp32", -2.0, "40", "0"), ("B", "W8 int", -0.5, "30", "20"),
        ("C", "fp32", 0.0, "0", "0"), ("C", "W8 int", -15.0, "300", "0"),
    ]  # fmt: skip
    labels = ["reference", "interpolation=nearest", "mean=[0.5]"]
    assert [row["label"] for row in rows] == [label for label in labels for _ in range(2)]
    assert [row["compared_with"] for row in rows] == ["", "", ONE, "", ONE, ""] and {row["files"] for row in rows} == {"f"}
    with (report.folder / "pairs.csv").open() as file:
        pairs = {(row["a"], row["b"]): float(row["difference"]) for row in csv.DictReader(file)}
    assert len(pairs) == 15 and -17.0 not in pairs.values()  # any two of six rows, of one set of images
    text = " ".join(report.table.split())
    assert "Rows of the same files, prepared in other ways" in text and "A: mnist5k, interpolation bicubic" in text
    page, markdown = ((report.folder / name).read_text(encoding="utf-8") for name in ("report.html", "table.md"))
    assert "What does preparing the images of resnet20 on mnist5k in other ways cost" in page
    assert "of a float network against that of protocol A" in page and "of a float network against that of protocol A" in markdown
    assert "B: mnist5k, interpolation nearest" in text and "of 5 are shown to differ from their float network" in text
    assert not verify_tables("exp", runs_dir=tmp_path / "nowhere", results_dir=tmp_path / "results").wrong


def test_the_cut_of_other_splits_does_not_hide_a_preprocessing(three_ways, tmp_path):
    cut = {"data.num_calib": 100}
    runs_dir = three_ways({}, cut, cut)
    protocols = load_records("exp", runs_dir).groupby("training")["protocol"].unique()
    assert [protocols[training].tolist() for training in (ONE, OTHER, THIRD)] == [["A"], ["B"], ["C"]]
    report = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", figures=False)
    assert "Rows of the same files, prepared in other ways" in " ".join(report.table.split())
    none = {"evaluate.across": None}
    with pytest.raises(MixedProtocolsError, match=r"B: mnist5k, interpolation nearest.*evaluate.across=preprocessing"):
        write_report("exp", runs_dir=three_ways(none, cut | none, none), results_dir=tmp_path / "other", figures=False)


def test_only_preprocessing_is_compared_across(write, training, tmp_path):
    runs_dir = write(training(["W8 int"]), training(["W8 int"], training=OTHER, n=500))
    with pytest.raises(MixedProtocolsError) as caught:
        write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results")
    assert "evaluate.across" not in str(caught.value)


def test_a_delta_across_preprocessings_is_verified(three_ways, tmp_path):
    report = write_report("exp", runs_dir=three_ways(), results_dir=tmp_path / "results", figures=False)
    table = report.folder / "table.csv"
    changed = table.read_text().replace(",-2,", ",-1,")
    assert changed != table.read_text()
    table.write_text(changed)
    assert verify_tables("exp", runs_dir=tmp_path / "nowhere", results_dir=tmp_path / "results").wrong


@pytest.mark.parametrize(
    "changes",
    [
        ({}, {"evaluate.files": "g"}, {}),  # other files
        ({}, {}, {"evaluate.across": None}),  # not all of them ask
    ],
)
def test_other_files_are_never_compared(three_ways, tmp_path, changes):
    with pytest.raises(MixedProtocolsError):
        write_report("exp", runs_dir=three_ways(*changes), results_dir=tmp_path / "results", figures=False)


def test_another_network_is_no_reference(three_ways):
    records = load_records("exp", three_ways({}, {"model.name": "resnet56"}, {}))
    floats = records[records["variant"] == "fp32"].set_index("protocol")["compared_with"]
    assert floats.isna().tolist() == [True, True, False] and floats["C"] == ONE


def test_the_command(write, training, monkeypatch, capsys):
    write(training(["W8 int"], epochs=1), training(["W8 int"], training=OTHER, n=500, epochs=1))
    for argument, code in (("mixed=false", 2), ("mixed=true", 0)):
        monkeypatch.setattr("sys.argv", ["qexp.report", "name=exp", argument])
        assert run_verb(ReportSettings, run, "") == code
    said = capsys.readouterr()
    assert "B: mnist5k, split test, n = 500), and their numbers are no comparison" in said.err
    assert "Rows of different protocols stand here side by side" in said.out


def test_a_sweep_that_ends_so_is_not_a_failure(write, training, tmp_path, capsys):
    """Every number is stored; the report alone is refused, and nothing is sent in its place."""
    runs_dir = write(training(["W8 int"], epochs=1), training(["W8 int"], training=OTHER, n=500, epochs=1))
    config = SimpleNamespace(name="exp", runs_dir=runs_dir, results_dir=tmp_path / "results", draw_figures=True)
    assert report_sweep(config) == []
    assert "no report: name=exp: " in capsys.readouterr().out


def test_letters_do_not_run_out(write, training):
    rows = [row for n in range(30) for row in training([], training=f"{n:02d}" * 8, epochs=1, n=100 + n)]
    records = load_records("exp", write(rows))
    protocols = find_protocols(records, {})
    assert list(protocols.descriptions)[-2:] == ["P29", "P30"] and len(set(protocols.marks)) == 30
