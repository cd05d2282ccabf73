"""What is written of a profile: tables that agree with it, figures that show the grid, nothing left of an earlier one."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from qexp.analysis.profile_figures import NUM_LINES, contact_sheet, histogram, score_bars
from qexp.analysis.profile_report import markdown, summary, tensor_frame, write_profile
from qexp.analysis.profile_results import ClassScore, Histogram, Profile, TensorProfile


def tensor(name="conv1.weight", **changes) -> TensorProfile:
    values = {
        "role": "weight", "made_by": "Conv2d", "shape": (8, 1, 3, 3), "bits": 2, "mode": "int", "scheme": "affine",
        "granularity": "per_tensor", "rule": "conv and linear weights", "ranges": "minmax", "num_values": 72, "minimum": -1.0,
        "maximum": 2.0, "zero_share": 0.0, "grid_min": -1.0, "grid_max": 2.0, "scale_min": 1.0, "scale_max": 1.0, "sqnr_db": 15.2,
        "mse": 0.05, "loss": 3.6, "saturation": 0.0, "size_bytes": 26, "size_share": 0.25,
        "histogram": Histogram((1, 40, 30, 1), -1.0, 2.0, (-1.0, 0.0, 1.0, 2.0)),
    }  # fmt: skip
    return TensorProfile(name=name, **(values | changes))


def activation(**changes) -> TensorProfile:
    values = {"role": "activation", "loss": None, "size_bytes": None, "size_share": None, "saturation": 0.01}
    return tensor("input", **(values | changes))


SCORES = (ClassScore(3, "cat", 0.9, 0.6, 1, 1), ClassScore(5, "dog", 0.1, 0.4, 2, 2))
PROFILE = Profile(
    label="W2A2 int affine", subject="digits, custom", checkpoint="a.pt", command="python -m qexp.analyze task=profile",
    tensors=(tensor(), tensor("fc.weight", loss=0.4, sqnr_db=None), activation()), size_bytes=104, images="100 calib images",
    notes=("a note",), image="pictures/cat.png", scores=SCORES,
)  # fmt: skip


def test_the_files_agree_with_the_profile(tmp_path):
    files = write_profile(PROFILE, tmp_path)
    assert all(path.is_file() for path in files)
    with open(tmp_path / "tensors.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["name"] for row in rows] == ["conv1.weight", "fc.weight", "input"]
    assert float(rows[0]["loss"]) == 3.6 and rows[1]["sqnr_db"] == "" and rows[2]["loss"] == ""
    assert rows[0]["shape"] == "8x1x3x3" and {row["variant"] for row in rows} == {"W2A2 int affine"}
    with open(tmp_path / "scores.csv") as handle:
        assert [row["name"] for row in csv.DictReader(handle)] == ["cat", "dog"]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"001_conv1_weight.png", "003_activation_input.png", "sheet_weights.png", "sqnr.svg", "scores.png"} <= names


def test_nothing_of_an_earlier_profile_stays(tmp_path):
    (tmp_path / "figures").mkdir()
    for old in (tmp_path / "scores.csv", tmp_path / "figures" / "002_fc_weight.png"):
        old.touch()
    write_profile(replace(PROFILE, tensors=PROFILE.tensors[:1], scores=()), tmp_path)
    assert not (tmp_path / "scores.csv").exists()
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"001_conv1_weight.png"} | {
        f"{stem}.{kind}" for stem in ("sheet_weights", "sqnr") for kind in ("pdf", "png", "svg")
    }


def test_the_total_loss_is_the_sum_over_weights():
    assert PROFILE.total_loss == 4.0
    assert "total quantization loss 4" in markdown(PROFILE) and "total quantization loss 4" in summary(PROFILE)


def test_what_a_person_reads():
    text = markdown(PROFILE)
    assert "| conv1.weight | 8x1x3x3 | 2 | affine |" in text and "exact" in text
    assert "100 calib images" in text and "| cat | 1 | 0.90000 | 1 | 0.60000 |" in text
    assert "a note" in summary(PROFILE) and "0.60000 (1)" in summary(PROFILE)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == lines[0].count("|") for line in lines[:3])


def test_a_frame_has_a_row_per_tensor_and_no_histogram():
    frame = tensor_frame(PROFILE)
    assert len(frame) == 3 and "histogram" not in frame.columns


def test_the_grid_is_drawn_where_it_is():
    axes = Figure().subplots()
    histogram(axes, tensor())
    drawn = [
        tuple(segment[0][0] for segment in lines.get_segments()) for lines in axes.collections if hasattr(lines, "get_segments")
    ]
    assert (-1.0, 0.0, 1.0, 2.0) in drawn and (-1.0, 2.0) in drawn
    low, high = axes.get_xlim()
    assert low < -1 and high > 2
    many = tuple(np.linspace(-1, 2, 2 * NUM_LINES))
    axes = Figure().subplots()
    histogram(axes, tensor(histogram=Histogram((1, 2), -1.0, 2.0, many)))
    heights = [
        segment[:, 1].max() for lines in axes.collections if hasattr(lines, "get_segments") for segment in lines.get_segments()
    ]
    assert heights.count(0.06) == len(many)  # ticks at the foot


def test_a_grid_far_wider_than_the_values_does_not_hide_them():
    axes = Figure().subplots()
    histogram(axes, tensor(grid_min=-100.0, grid_max=100.0))
    low, high = axes.get_xlim()
    assert 3 / (high - low) > 0.4


@pytest.mark.parametrize("tensor", [tensor(grid_min=None, grid_max=None), tensor(sqnr_db=None), tensor(saturation=0.5)])
def test_whatever_is_missing_is_drawn_all_the_same(tensor):
    assert len(contact_sheet([tensor] * 7, "title").axes) == 10


def test_both_networks_have_a_bar_for_each_class():
    axes = score_bars(SCORES, "title").axes[0]
    assert [round(bar.get_width(), 3) for bar in axes.patches] == [0.9, 0.1, 0.6, 0.4]
