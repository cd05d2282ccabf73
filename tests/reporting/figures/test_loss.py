import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from qexp.reporting.figures.accuracy import prec1_by_epoch
from qexp.reporting.figures.loss import loss_by_epoch
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import load_predictions
from qexp.reporting.statistics.paired import with_statistics
from qexp.stats.interval import newcombe
from qexp.stats.paired import compare


def _bands(axes):
    """Low and high of each band by abscissa."""
    bands = [drawn for drawn in axes.collections if type(drawn).__name__ == "FillBetweenPolyCollection"]
    return [
        pd.DataFrame(band.get_paths()[0].vertices, columns=["x", "y"]).groupby("x")["y"].agg(["min", "max"]) for band in bands
    ]


def test_a_panel_for_each_width_with_its_losses(write, training):
    records = load_records("exp", write(training(["W8 int", "W4 int", "W4 float"])))
    figure = loss_by_epoch(records)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["8 bits", "4 bits"]
    assert "faint: of both accuracies alone" in figure.get_suptitle()
    rows = records[records["variant"] == "W4 int"].sort_values("epoch")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[1].get_lines()]
    assert (rows["epoch"].tolist(), rows["delta_prec1"].tolist()) in drawn
    assert f"{rows['delta_prec1'].iloc[-1]:+.2f}" in [text.get_text() for text in figure.axes[1].texts]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["int", "float (control)"]


def test_a_variant_has_the_colour_that_it_has_against_the_epoch(write, training):
    records = load_records("exp", write(training(["W8 int", "W4 int", "W3 int"])))
    last = {name: rows.sort_values("epoch") for name, rows in records.groupby("variant")}
    colors = {
        name: {
            line.get_color() for axes in draw(records).axes for line in axes.get_lines() if list(line.get_ydata()) == list(values)
        }
        for draw, column in ((prec1_by_epoch, "prec1"), (loss_by_epoch, "delta_prec1"))
        for name, values in ((f"{name} {column}", rows[column]) for name, rows in last.items() if name != "fp32")
    }
    for name in ("W8 int", "W4 int", "W3 int"):
        assert len(colors[f"{name} prec1"]) == 1 and colors[f"{name} prec1"] == colors[f"{name} delta_prec1"]
    assert len(set(map(str, colors.values()))) == 3


def test_what_was_not_kept_has_the_interval_of_both_accuracies(write, training):
    records = load_records("exp", write(training(["W4 int"])))
    (axes,) = loss_by_epoch(records).axes
    (band,) = _bands(axes)
    for epoch in (1, 8):
        of_epoch = records[records["epoch"] == epoch].set_index("variant")["prec1"]
        expected = newcombe(round(of_epoch["fp32"] * 10), round(of_epoch["W4 int"] * 10), 1000)
        assert tuple(band.loc[epoch]) == pytest.approx((expected.low, expected.high))
        assert axes.get_ylim()[0] < expected.low and axes.get_ylim()[1] > expected.high


def test_what_was_kept_has_the_interval_of_pairs(write, predicted, tmp_path):
    right = {"fp32": [True] * 90 + [False] * 10, "W4 int": [False] * 6 + [True] * 86 + [False] * 8}
    rows = predicted(right, folder=tmp_path / "runs", epoch=1)
    rows += [row for row in predicted(right, folder=tmp_path / "runs", epoch=2) if row["kind"] == "record"]
    runs_dir = write(rows)
    records = load_records("exp", runs_dir)
    figure = loss_by_epoch(with_statistics(records, load_predictions(records, tmp_path / "runs")))
    (axes,) = figure.axes
    paired = compare(right["fp32"], right["W4 int"]).interval
    (band,) = _bands(axes)
    assert tuple(band.loc[1]) == pytest.approx((paired.low, paired.high)) and "faint" not in figure.get_suptitle()
    assert not [drawn for drawn in axes.collections if isinstance(drawn, LineCollection)]


def test_seeds_are_means_with_one_standard_deviation(write, training):
    parts = [training(["W4 int"], training=f"{seed}{seed}" * 8, params={"seed": seed}, seed=seed) for seed in (1, 2)]
    records = load_records("exp", write(*parts))
    figure = loss_by_epoch(records)
    (axes,) = figure.axes
    last = records.query("variant == 'W4 int' and epoch == 8")["delta_prec1"]
    assert "mean and sd over seeds" in figure.get_suptitle()
    assert tuple(_bands(axes)[0].loc[8]) == pytest.approx((last.mean() - last.std(), last.mean() + last.std()))


def test_not_drawn_without_epochs(write, training):
    assert loss_by_epoch(load_records("exp", write(training(["W4 int"], epochs=1)))) is None
    assert loss_by_epoch(load_records("exp", write(training([])))) is None


def test_images_of_two_splits_are_panels_of_their_own(write, training):
    rows = training(["W4 int"])
    other = [row | {"split": "val", "n": 500} for row in rows if row["kind"] == "record"]
    figure = loss_by_epoch(load_records("exp", write(rows, other)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["test n=1000, 4 bits", "val n=500, 4 bits"]
    assert all(len(line.get_xdata()) in (2, 8) for axes in figure.axes for line in axes.get_lines())
