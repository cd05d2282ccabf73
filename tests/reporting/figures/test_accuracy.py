import subprocess
import sys

import pandas as pd
import pytest

from qexp.base.errors import UserError
from qexp.reporting.figures.accuracy import prec1_by_bits, prec1_by_epoch
from qexp.reporting.figures.style import MAX_PANELS, PALETTE, looks, padded, save, zoom_limits
from qexp.reporting.frames.load import load_records
from qexp.reporting.report import write_report

TWELVE = [f"W{bits} {mode}" for bits in (2, 3, 4, 8, 16) for mode in ("int", "float")] + ["W16 half", "W6 int"]


def _lines(axes):
    """The curves of an axis: (line style, colour, x, y)."""
    return [(line.get_linestyle(), line.get_color(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]


def test_curves_are_the_records(write, training):
    records = load_records("exp", write(training(["W8 int", "W4 int", "W4 float", "W16 half"])))
    figure = prec1_by_epoch(records)
    (axes,) = figure.axes
    drawn = _lines(axes)
    assert len(drawn) == 5
    for name in ("fp32", "W8 int", "W4 int", "W4 float", "W16 half"):
        rows = records[records["variant"] == name]
        assert any(x == rows["epoch"].tolist() and y == rows["prec1"].tolist() for _, _, x, y in drawn), name
    assert drawn[-1][1] == "#000000" and axes.get_lines()[-1].get_linewidth() > 2
    low, high = axes.get_ylim()
    assert low < records["prec1"].min() and high > records["prec1"].max()


def test_legend_and_title(write, training):
    figure = prec1_by_epoch(load_records("exp", write(training(TWELVE))))
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == 13
    assert texts[0].split() == ["fp32", "97.50"]
    assert "mnist5k, resnet20, n = 1000 test images" in figure.get_suptitle()


def test_chance_level_and_the_top_have_an_axis_each(write, training):
    records = load_records("exp", write(training(TWELVE)))
    magnified, everything = prec1_by_epoch(records).axes
    assert magnified.get_ylim()[0] > 90
    assert everything.get_ylim()[0] <= records["prec1"].min()
    assert len(magnified.get_lines()) == len(everything.get_lines()) == 13


def test_a_panel_per_training(write, training):
    other = training(["W8 int", "W4 int"], training="bb" * 8, params={"train.lr": 0.01})
    figure = prec1_by_epoch(load_records("exp", write(training(["W8 int", "W4 int"]), other)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["lr=0.1", "lr=0.01"]


def test_panels_share_an_axis_unless_the_data_differ(write, training):
    parts = [
        training(["W8 int"], training=key * 8, top=top, params={"seed": seed}, seed=seed)
        for key, top, seed in (("aa", 97, 0), ("bb", 85, 1))
    ]
    first, second = prec1_by_epoch(load_records("exp", write(*parts))).axes
    assert first.get_ylim() == second.get_ylim()
    parts[1][0]["params"]["data.name"] = "cifar10"
    first, second = prec1_by_epoch(load_records("exp", write(*parts))).axes
    assert first.get_ylim() != second.get_ylim()


def test_nothing_overlaps(write, training):
    """The legend of sixteen variants is readable: outside the axes, below the title, on the canvas."""
    variants = [*TWELVE, "W5 int", "W5 float", "W7 int", "W7 float"]
    rows = [row for row in training(TWELVE)]
    rows += [row | {"variant": name, "variant_key": name, "plan_hash": name, "run": f"r/{name}", "bits": int(name[1])}
             for name in variants[12:] for row in rows if row.get("variant") == "W8 int"]  # fmt: skip
    records = load_records("exp", write(rows))
    for figure in (prec1_by_epoch(records), prec1_by_bits(records)):
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        heading = figure._suptitle.get_window_extent()
        assert all(not legend.overlaps(axes.get_tightbbox()) for axes in figure.axes)
        assert not legend.overlaps(heading)
        assert legend.y0 >= 0 and legend.y1 <= figure.bbox.y1


def test_styles_tell_mode_and_bits():
    frame = pd.DataFrame(
        {
            "variant": ["W8 int", "W8 float", "W4 int", "W4 half", "W4 pc"],
            "bits": [8, 8, 4, 4, 4],
            "mode": ["int", "float", "int", "half", "int"],
            "policy": "uniform",
            "quant": "linear",
            "granularity": ["per_tensor"] * 4 + ["per_channel"],
            "input_quant": "none",
        }
    )
    styles = looks(frame)
    assert styles["W8 int"].color == styles["W8 float"].color != styles["W4 int"].color == styles["W4 pc"].color
    assert styles["W8 int"].line == styles["W4 int"].line != styles["W8 float"].line != styles["W4 half"].line
    assert styles["W4 pc"].marker != styles["W4 int"].marker
    same = frame.assign(bits=8, mode="int", granularity="per_tensor")
    assert [look.color for look in looks(same).values()] == list(PALETTE[:5])


def test_limits():
    top = pd.Series([90.0, 97.0, 97.5, 98.0])
    assert zoom_limits({"a": top - 1}, top) is None
    assert zoom_limits({"a": top - 80}, top) is None
    low, high = zoom_limits({"a": top - 1, "b": top - 80}, top)
    assert 95 < low < 96.5 and high > 98
    assert padded(10, 98, least=1) == (0.0, 101.0)
    assert padded(97.0, 97.0, least=2.0) == pytest.approx((95.88, 98.12))


def test_bits_figure(write, training):
    records = load_records("exp", write(training(["W8 int", "W4 int", "W8 float", "W4 float"])))
    (axes,) = prec1_by_bits(records).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8"]
    plain = records[(records["variant"] == "fp32") & (records["epoch"] == 8)]["prec1"].item()
    assert [plain, plain] in [y for _, _, _, y in _lines(axes)]
    ends = records[(records["mode"] == "int") & (records["epoch"] == 8)].sort_values("bits")["prec1"].tolist()
    assert ends in [y for _, _, _, y in _lines(axes)]
    assert prec1_by_bits(load_records("exp", write(training(["W8 int"])))) is None


def test_lines_are_named_by_what_differs(write, training):
    rows = training(["W8 int", "W4 int", "W4 float", "W16 half"])
    pc = [row | {"granularity": "per_channel", "variant": row["variant"] + " pc", "variant_key": "p" + row["variant_key"],
                 "plan_hash": "p" + row["plan_hash"]} for row in rows if row.get("mode") == "int"]  # fmt: skip

    def names(*parts):
        return sorted(text.get_text() for text in prec1_by_bits(load_records("exp", write(*parts))).legends[0].get_texts())

    assert names(rows) == ["float (control)", "fp32", "half", "int"]
    assert names(rows, pc) == ["float (control), per_tensor", "fp32", "half", "int, per_channel", "int, per_tensor"]


def test_variants_with_the_same_bits_are_never_averaged(write, training, record):
    rows = training(["W8 int", "W4 int"])
    for bits, prec1 in ((2, 50.0), (3, 60.0)):
        mixed = {
            "variant": f"conv{bits}",
            "variant_key": f"c{bits}",
            "plan_hash": f"c{bits}",
            "policy": "conv_linear",
            "prec1": prec1,
        }
        rows.append(record("W8 int", 8) | mixed)
    axes = prec1_by_bits(load_records("exp", write(rows))).axes[-1]
    assert [("None", [50.0, 60.0])] == [(style, y) for style, _, _, y in _lines(axes) if 50.0 in y]


def test_seeds_are_averaged_against_bits(write, training):
    parts = [training(["W8 int", "W4 int"], training=f"{seed}{seed}" * 8, params={"seed": seed}, seed=seed) for seed in (1, 2)]
    records = load_records("exp", write(*parts))
    (axes,) = prec1_by_bits(records).axes
    ends = records[(records["mode"] == "int") & (records["epoch"] == 8)].groupby("bits")["prec1"].mean().tolist()
    assert any(y == pytest.approx(ends) for _, _, _, y in _lines(axes) if len(y) == 2)


def test_report(write, training, tmp_path):
    runs_dir = write(training(["W8 int", "W4 int"]))
    report = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", pdf=True)
    stems = ("prec1_by_epoch", "loss_by_epoch", "prec1_by_bits", "prec1_by_size")
    assert [path.name for path in report.figures] == [f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png", "svg")]
    assert all(path.stat().st_size > 5000 for path in report.figures)
    assert all(path.read_bytes().startswith(b"%PDF") for path in report.figures if path.suffix == ".pdf")
    assert report.folder == tmp_path / "results" / "exp" and "W4 int" in report.table
    before = {path: path.read_bytes() for path in (*report.figures, *report.tables)}
    write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results", pdf=True)
    assert {path: path.read_bytes() for path in before} == before
    again = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results")
    assert [path.name for path in again.figures] == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    assert not list((report.folder / "figures").glob("*.pdf")), "one of an earlier report would show other numbers some day"


def test_report_of_one_epoch_has_no_curves(write, training, tmp_path):
    report = write_report("exp", runs_dir=write(training(["W8 int", "W4 int"], epochs=1)), results_dir=tmp_path / "results")
    assert {path.stem for path in report.figures} == {"prec1_by_bits", "prec1_by_size"}


def test_report_of_a_float_network_alone(write, training, tmp_path):
    report = write_report("exp", runs_dir=write(training([])), results_dir=tmp_path / "results")
    assert {path.stem for path in report.figures} == {"prec1_by_epoch"}
    assert report.table.splitlines()[-1].startswith("fp32")


def test_report_of_nothing(write, tmp_path):
    with pytest.raises(UserError, match="at least one evaluation"):
        write_report("exp", runs_dir=write([]), results_dir=tmp_path)
    with pytest.raises(UserError, match="Did you mean exp"):
        write_report("exq", runs_dir=tmp_path / "runs", results_dir=tmp_path)


def test_no_global_state():
    names = ["matplotlib.pyplot", "torch", "mlflow"]
    code = f"import sys, qexp.reporting.report, qexp.reporting.drawn; print(*(name in sys.modules for name in {names}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


def test_activations_of_other_widths_are_other_lines(write, training):
    """W4A32 and W4A4 stand on lines of their own, each with a colour and a name."""
    rows = training(["W8 int", "W4 int"])
    plus = [row | {"activation_bits": bits, "variant": f"{row['variant']} A{bits}", "prec1": row["prec1"] - 8 / bits,
                   "variant_key": f"a{bits}" + row["variant_key"], "plan_hash": f"a{bits}" + row["plan_hash"]}
            for row in rows if row.get("mode") == "int" for bits in (8, 4)]  # fmt: skip
    figure = prec1_by_bits(load_records("exp", write(rows, plus)))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["fp32", "int, A32", "int, A8", "int, A4"]
    lines = [line for line in figure.axes[0].get_lines() if line.get_color() != "#000000" and len(line.get_xdata()) == 2]
    assert len({line.get_color() for line in lines}) == 3 and all(line.get_linestyle() == "-" for line in lines)


def test_activations_as_wide_as_the_weights_are_one_line(write, training):
    rows = [
        row | ({"activation_bits": row["bits"]} if row.get("mode") == "int" else {}) for row in training(["W8 int", "W4 int"])
    ]
    figure = prec1_by_bits(load_records("exp", write(rows)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fp32", "int"]


def test_points_of_a_width_stand_around_its_tick(write, training):
    axes = prec1_by_bits(load_records("exp", write(training(["W8 int", "W4 int", "W8 float", "W16 half"])))).axes[0]
    places = [
        x for line in axes.get_lines() if line.get_color() != "#000000" for x in line.get_xdata() if len(line.get_xdata()) < 3
    ]
    assert sorted(round(x, 3) for x in places if abs(x) < 0.3) == [0.0]
    at_eight = [x for x in places if abs(x - 1) < 0.3]
    assert len(at_eight) == 2 and sum(at_eight) == pytest.approx(2.0)


def test_the_best_curve_is_not_cut_off():
    """One that peaks early, and one far above the float network, as fine-tuning may end."""
    top = pd.Series([90.0, 91.0, 91.0, 91.0])
    early, above = pd.Series([90.0, 97.0, 92.0, 91.0]), pd.Series([95.0, 96.0, 98.0, 99.0])
    assert zoom_limits({"a": early, "b": top - 80}, top)[1] > 97
    assert zoom_limits({"a": above, "b": top - 80}, top)[1] > 99


def test_few_curves_are_labelled_at_their_ends(write, training):
    figure = prec1_by_epoch(load_records("exp", write(training(["W8 int", "W4 int"]))))
    (axes,) = figure.axes
    assert not figure.legends and sorted(text.get_text().rpartition(" ")[0] for text in axes.texts) == [
        "W4 int",
        "W8 int",
        "fp32",
    ]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])


def test_a_paper_has_figures_without_headings(write, training, tmp_path):
    records = load_records("exp", write(training(["W8 int", "W4 int"])))
    for titled in (True, False):
        svg = save(prec1_by_bits(records), tmp_path / "figure", ("svg",), titled=titled)[0].read_text()
        assert ("mnist5k, resnet20" in svg) == titled and "weight bits" in svg


def _num_bands(axes):
    return sum(type(drawn).__name__ == "FillBetweenPolyCollection" for drawn in axes.collections)


def test_bands_are_the_intervals_of_few_curves(write, training):
    few = prec1_by_epoch(load_records("exp", write(training(["W8 int", "W4 int"]))))
    assert _num_bands(few.axes[0]) == 3 and "95 % intervals" in few.get_suptitle()
    many = prec1_by_epoch(load_records("exp", write(training(TWELVE))))
    assert all(_num_bands(axes) == 1 for axes in many.axes)


def _trainings(count, training, **params):
    """So many trainings, whose seed and parameters are numbers from 0 on."""
    named = [{name: number for name in ("seed", *params)} for number in range(count)]
    return [training(["W4 int"], training=f"{number:016x}", params=one, seed=number) for number, one in enumerate(named)]


def test_seeds_of_more_trainings_than_a_figure_has_room_for_are_one_panel_of_means(write, training):
    records = load_records("exp", write(*_trainings(MAX_PANELS + 1, training)))
    (axes,) = prec1_by_epoch(records).axes
    means = records.groupby(["variant", "epoch"])["prec1"].mean()
    assert any(y == pytest.approx(list(means["W4 int"])) for *_, y in _lines(axes))
    assert len(prec1_by_epoch(load_records("exp", write(*_trainings(MAX_PANELS, training)))).axes) == MAX_PANELS


def test_of_other_trainings_the_first_are_drawn_and_the_heading_counts_them(write, training):
    records = load_records("exp", write(*_trainings(MAX_PANELS + 3, training, **{"train.lr": 0})))
    figure = prec1_by_epoch(records)
    assert len(figure.axes) == MAX_PANELS
    assert f"the first {MAX_PANELS} of {MAX_PANELS + 3} trainings, epochs.csv has all" in figure.get_suptitle()


def test_a_seed_that_ended_early_is_not_among_the_means(write, training):
    parts = _trainings(MAX_PANELS + 1, training)
    parts[0] = training(["W4 int"], training="0" * 16, params={"seed": 0}, epochs=2)
    figure = prec1_by_epoch(load_records("exp", write(*parts)))
    assert "1 training that ended earlier not among them" in figure.get_suptitle()
