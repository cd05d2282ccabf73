"""What analyses layers of an experiment's layers: frames, maps, and their place on the page."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qexp.reporting.figures.layers import kl_map, sensitivity_map, sqnr_map
from qexp.reporting.frames.layers import histogram_sheets, load_layers
from qexp.reporting.report import write_report
from qexp.reporting.tables.allocations import allocations_for_page


def _cells(figure):
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in figure.axes[0].texts}


PUBLISHED = Path(__file__).parents[3] / "results" / "published"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><g id="figure_1"><path d="M 0 0"/></g></svg>'


def _profile(folder, label, *rows):
    """The files of a profile, as far as they are read: label, tensor, role, bits, SQNR; and a sheet of histograms."""
    path = folder / "profile" / label.replace(" ", "_")
    (path / "figures").mkdir(parents=True)
    lines = ["variant,name,role,bits,sqnr_db", *(f"{label},{row}" for row in rows)]
    (path / "tensors.csv").write_text("\n".join(lines) + "\n")
    (path / "figures" / "sheet_weights.svg").write_text(SVG)


def _sensitivity(folder, label):
    path = folder / "sensitivity" / label.replace("/", "-").replace(" ", "_")
    path.mkdir(parents=True)
    rows = [f"{label},layer{k},{bits},{'' if k == 3 else 20 + k},{kl / bits},-1,100"
            for k, kl in enumerate((0.4, 0.3, 0.0, float("inf"))) for bits in (2, 4)]  # fmt: skip
    (path / "sensitivity.csv").write_text("\n".join(["variant,layer,bits,sqnr_db,kl,delta_prec1,n", *rows]) + "\n")


@pytest.fixture
def analysed(tmp_path):
    """`results/exp` with profiles of two variants and an analysis of single layers."""
    folder = tmp_path / "results" / "exp"
    _profile(folder, "W2A2 int affine", "conv1.weight,weight,2,15.2", "fc.weight,weight,2,", "input,activation,2,9.1")
    _profile(folder, "W4 int affine", "conv1.weight,weight,4,27.3")
    _sensitivity(folder, "W2/4 int affine")
    return folder


def test_frame_maps_and_page(analysed, predicted, write, tmp_path):
    frame = load_layers(analysed)
    assert frame.groupby("task").size().to_dict() == {"profile": 4, "sensitivity": 8}
    assert list(frame["variant"].unique()) == ["W2A2 int affine", "W4 int affine", "W2/4 int affine"]

    (analysed / "sensitivity").rename(analysed / "allocation")  # an allocation has its own below its folder
    for path in list((analysed / "allocation").iterdir()):
        (path / "sensitivity").mkdir()
        (path / "sensitivity.csv").rename(path / "sensitivity" / "sensitivity.csv")
    assert load_layers(analysed).equals(frame)

    figure = sqnr_map(frame)
    columns = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert columns == ["W2A2 int affine", "W4 int affine", "2 bits", "4 bits"]
    layers = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert layers == ["conv1.weight", "fc.weight", "layer0", "layer1", "layer2", "layer3"]  # activations are not weights
    cells = _cells(figure)
    assert (cells[0, 0], cells[0, 1], cells[1, 0], cells[1, 1], cells[2, 3], cells[5, 2]) == (
        "15.2", "27.3", "exact", "", "20.0", "exact",
    )  # fmt: skip

    figure = sensitivity_map(frame)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2 bits", "4 bits"]
    assert _cells(figure)[0, 0] == "0.2" and _cells(figure)[3, 1] == "inf"
    assert "n = 100 images" in figure.get_suptitle()

    images = np.arange(100)
    rows = predicted({"fp32": images < 90, "W4 int": images < 80})
    report = write_report("exp", runs_dir=write(rows), results_dir=tmp_path / "results")
    names = {path.name for path in report.figures}
    assert {f"{stem}.{kind}" for stem in ("weight_sqnr", "layer_sensitivity") for kind in ("png", "svg")} <= names
    text = (report.folder / "report.html").read_text(encoding="utf-8")
    assert "What each layer costs" in text and text.count("<summary>Histograms: W2A2 int affine") == 1
    assert 'id="figure_1"' not in text  # names of its own


def test_an_allocation_has_its_bits_and_its_result_on_the_page(predicted, write, tmp_path):
    """The published one, whose files lack budget and images, one as they are written now, and what a killed command left."""
    (source,) = (PUBLISHED / "mixed_precision" / "allocation").iterdir()
    folder = tmp_path / "results" / "exp" / "allocation"
    shutil.copytree(source, folder / "before")
    shutil.copytree(source, folder / "now")
    (folder / "killed").mkdir()
    shutil.copy(source / "methods.csv", folder / "killed")
    table = pd.read_csv(source / "methods.csv").assign(budget="4 bits", images="500 select images", scored="test images")
    table.to_csv(folder / "now" / "methods.csv", index=False)
    (folder / "now" / "figures" / "bits.svg").write_text(SVG)
    images = np.arange(100)
    rows = predicted({"fp32": images < 90, "W4 int": images < 80})
    report = write_report("exp", runs_dir=write(rows), results_dir=tmp_path / "results", figures=False)
    text = (report.folder / "report.html").read_text(encoding="utf-8")
    layers = text.split('<section id="layers">')[1].split("</section>")[0]
    result = "+1.58 points, 95 % interval +1.01 to +2.15 (lost/won 341/499, McNemar p = 5.6e-08, n = 10000 test images)"
    assert layers.count(f"<li>exact against uniform: {result}: better.</li>") == 2
    assert "greedy against exact: -0.19 points" in layers and "not significantly different.</li>" in layers
    assert '<h3 id="allocation-1">Bits per layer</h3>' in layers and '<h3 id="allocation-2">Bits per layer: 4 bits</h3>' in layers
    row = next(line for line in layers.splitlines() if "linear.weight" in line)
    assert re.findall(r">(\d)<", row) == list("684868688"), "as in layers.csv"
    row = next(line for line in layers.splitlines() if ">uniform 4<" in line)
    assert ">4.000<" in row and f">{148160 / 2**20:.3f}<" in row and ">77.57<" in row
    assert ">Bits of each layer</h3>" in layers and text.index('href="#layers"') < text.index('href="#protocol"')


def test_choices_of_one_run_and_bits_of_another_are_not_on_the_page(tmp_path):
    """Two runs share a folder; the second one, with fewer measures or another one, was killed between its files."""
    (source,) = (PUBLISHED / "mixed_precision" / "allocation").iterdir()
    for name in ("fewer", "other", "whole"):
        shutil.copytree(source, tmp_path / "allocation" / name)
    table = pd.read_csv(source / "methods.csv")
    table.iloc[:-1].to_csv(tmp_path / "allocation" / "fewer" / "methods.csv", index=False)
    table.replace({"measure": {"kl": "mse", "mse": "kl"}}).to_csv(tmp_path / "allocation" / "other" / "methods.csv", index=False)
    assert len(allocations_for_page(tmp_path)) == 1


def test_a_choice_whose_divergence_is_no_number_is_on_the_page_without_it(tmp_path):
    (source,) = (PUBLISHED / "mixed_precision" / "allocation").iterdir()
    folder = shutil.copytree(source, tmp_path / "allocation" / "a")
    pd.read_csv(folder / "methods.csv").assign(kl=np.nan).to_csv(folder / "methods.csv", index=False)
    (shown,) = allocations_for_page(tmp_path)
    assert "uniform 4" in str(shown["choices"]) and "nan" not in str(shown["choices"])


def test_without_an_analysis_there_is_no_map(tmp_path):
    frame = load_layers(tmp_path)
    assert frame.empty and sqnr_map(frame) is None and sensitivity_map(frame) is None and histogram_sheets(tmp_path) == []


def test_cells_that_cannot_be_coloured_are_drawn_all_the_same(analysed):
    frame = load_layers(analysed)
    exact = sqnr_map(frame.assign(sqnr_db=np.inf))
    assert set(_cells(exact).values()) == {"exact", ""}
    zero = kl_map(frame.pivot_table(index="layer", columns="bits", values="kl") * 0, "nothing is lost")
    assert "0" in _cells(zero).values()


def test_two_analyses_are_told_apart(analysed):
    _sensitivity(analysed, "W2/4 int linear")
    layers = load_layers(analysed)
    assert set(layers["column"][layers["task"] == "sensitivity"]) == {
        f"W2/4 int {name}: {bits} bits" for name in ("affine", "linear") for bits in (2, 4)
    }
