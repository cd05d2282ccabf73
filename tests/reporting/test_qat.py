"""Experiments that hold quantization-aware trainings: what they are called, their table and their figures."""

import csv

import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from qexp.reporting.figures.accuracy import prec1_by_bits, prec1_by_epoch
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.summary import seed_table, summarize
from qexp.reporting.report import write_report
from qexp.reporting.tables.results import format_table, markdown
from qexp.tracking.record import FLOAT_VARIANT

EPOCHS = 8


def _labels(runs_dir):
    return load_records("exp", runs_dir).drop_duplicates("training")["label"].tolist()


def _table(runs_dir):
    return summarize(load_records("exp", runs_dir))


def _legend(figure):
    """What names the curves: a legend, or labels at their ends."""
    return [text.get_text() for text in (figure.legends[0].get_texts() if figure.legends else figure.axes[0].texts)]


def _lines(axes):
    return {tuple(line.get_ydata()): line for line in axes.get_lines()}


def test_labels_say_method_and_bits(write, comparison):
    assert _labels(write(comparison())) == [
        "float start", "lsq W2A2", "lsq W4A4", "pact W2A2", "pact W4A4", "float control",
    ]  # fmt: skip
    groups = load_records("exp", write(comparison((0, 1)))).drop_duplicates("training")
    assert groups["label"].tolist() == [f"{name} seed={seed}" for seed in (0, 1) for name in groups["group"].unique()]


def test_labels_say_what_else_differs(write, qat_training):
    rounded = qat_training("bb" * 8, qat={"mask": "rounded"}, words=["rounded"])
    assert _labels(write(qat_training("aa" * 8), rounded)) == ["lsq W4A4 mask=paper", "lsq W4A4 mask=rounded"]
    slow = qat_training("bb" * 8, bits=2, lr=0.05)
    assert _labels(write(qat_training("aa" * 8), slow)) == ["lsq W4A4 lr=0.01", "lsq W2A2 lr=0.005"]
    twice = [qat_training("aa" * 8), qat_training("bb" * 8)]
    assert _labels(write(*twice)) == ["lsq W4A4 aaaaaa", "lsq W4A4 bbbbbb"]


def test_float_trainings_are_told_apart(write, float_training, qat_training):
    floats = [float_training("f1" * 8, lr=0.1), float_training("f2" * 8, lr=0.02), float_training("f3" * 8, lr=0.5)]
    rows = [qat_training("aa" * 8, lr=0.1), qat_training("bb" * 8, lr=0.02)]
    assert _labels(write(*floats, *rows)) == [
        "float start lr=0.1", "float start lr=0.02", "float", "lsq W4A4 lr=0.01", "lsq W4A4 lr=0.002",
    ]  # fmt: skip


def test_networks_come_first(write, qat_training):
    rows = [qat_training("aa" * 8), qat_training("bb" * 8, model="resnet32")]
    frame = load_records("exp", write(*rows)).drop_duplicates("training")
    assert frame["label"].tolist() == ["model=resnet20 lsq W4A4", "model=resnet32 lsq W4A4"]
    assert frame["comparison"].tolist() == ["model=resnet20", "model=resnet32"]
    assert frame["curve"].tolist() == ["lsq W4A4"] * 2


def test_a_converted_network_is_called_so(write, qat_training):
    rows = qat_training("aa" * 8)
    file = f"runs/trainings/{'aa' * 8}/converted.safetensors"
    network = {key: value for key, value in rows[0]["params"].items() if key.startswith(("data.", "model.", "seed"))}
    opened = {"run": "cc" * 8, "params": network | {"checkpoint": file}, "artifacts": {}, "planned_epochs": None}
    evaluated = [rows[0] | opened]
    for row in rows:
        if row["kind"] == "record" and row["epoch"] == 1:
            evaluated.append(row | {"run": row["run"].replace("aa" * 8, "cc" * 8), "training": "cc" * 8, "epoch": 0})
    assert _labels(write(rows, evaluated)) == ["lsq W4A4", "converted lsq W4A4"]
    assert _labels(write(evaluated)) == ["converted lsq W4A4"]
    figure = prec1_by_epoch(load_records("exp", write(rows, evaluated)))
    assert len(figure.axes) == 1 and not any("converted" in text for text in _legend(figure))


def test_a_start_is_listed_once_and_the_control_after_it(write, comparison):
    table = _table(write(comparison()))
    assert table[["label", "variant"]].values.tolist() == [
        ["float start", FLOAT_VARIANT], ["float control", FLOAT_VARIANT], ["lsq W4A4", "W4A4 lsq"], ["lsq W2A2", "W2A2 lsq"],
        ["pact W4A4", "W4A4 pact"], ["pact W2A2", "W2A2 pact"],
    ]  # fmt: skip


def test_another_float_network_than_the_start_is_not_hidden(write, comparison):
    rows = [row | {"prec1": 12.0} if row.get("training") == "020a" * 4 and row["variant"] == FLOAT_VARIANT
            else row for row in comparison()]  # fmt: skip
    assert (_table(write(rows))["variant"] == FLOAT_VARIANT).sum() == 3


def test_a_start_from_a_file_is_one_row(write, float_training, qat_training):
    rows = [
        qat_training(f"{bits}{seed}" * 8, bits=bits, seed=seed, init="checkpoint", weights="w/start.pt", start=81.0)
        for bits in (2, 4)
        for seed in (0, 1)
    ]
    control = float_training("cc" * 8, seed=1, weights="w/start.pt")
    table = _table(write(*rows, control))
    assert table["label"].tolist() == [
        "float start", "float control seed=1", "lsq W4A4 seed=0", "lsq W4A4 seed=1", "lsq W2A2 seed=0", "lsq W2A2 seed=1",
    ]  # fmt: skip
    assert table["prec1"].iloc[0] == 81.0
    assert table["vs_control"].notna().tolist() == [False, False, False, True, False, True]
    assert "seed 0" not in format_table(table).splitlines()[0] and "  seed  " not in format_table(table)


def test_masters_of_a_random_start_stay(write, qat_training, float_training):
    table = _table(write(qat_training("aa" * 8, init="none"), float_training("ff" * 8)))
    assert table[["label", "variant"]].values.tolist() == [
        ["float control", FLOAT_VARIANT], ["lsq W4A4", FLOAT_VARIANT], ["lsq W4A4", "W4A4 lsq"],
    ]  # fmt: skip
    assert table["vs_control"].iloc[2] == pytest.approx(table["prec1"].iloc[2] - table["prec1"].iloc[0])


def test_points_against_the_control(write, comparison):
    rows = [row for row in comparison((0, 1)) if not (row.get("variant") == "W2A2 lsq" and row["epoch"] > 3)]
    records = load_records("exp", write(rows))
    table = summarize(records)
    control = records[(records["role"] == "control")].set_index(["seed", "epoch"])["prec1"]
    for row in table[table["role"] == "qat"].itertuples():
        assert row.vs_control == pytest.approx(row.prec1 - control[row.seed, row.epoch]), row.label
    assert set(table[table["variant"] == "W2A2 lsq"]["epoch"]) == {3}
    assert table[table["role"] != "qat"]["vs_control"].isna().all()
    assert set(table["delta_prec1"]) >= set(records[(records["variant"] == "W4A4 lsq") & (records["epoch"] == 8)]["delta_prec1"])


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0.02}, {"seed": 7}, {"weights": "/runs/trainings/" + "50" * 8 + "/epochs/0004.safetensors"}, {"weights": None}],
)
def test_no_control_where_recipe_seed_or_start_differ(write, comparison, float_training, changes):
    weights = f"/runs/trainings/{'50' * 8}/epochs/0008.safetensors"
    rows = comparison(control=False)
    assert _table(write(rows, float_training("cc" * 8, **({"weights": weights, "lr": 0.01}))))["vs_control"].notna().any()
    other = float_training("cc" * 8, **({"weights": weights, "lr": 0.01} | changes))
    assert _table(write(rows, other))["vs_control"].isna().all()


def test_the_column_is_shown_where_a_control_is_known(write, comparison, tmp_path):
    text = markdown("exp", _table(write(comparison())), pd.DataFrame())
    assert "| vs control |" in text and "vs control in points against the float control" in text
    alone = _table(write(comparison(control=False)))
    assert "vs control" not in markdown("exp", alone, pd.DataFrame()) and "vs control" not in format_table(alone)
    runs_dir = write(comparison())
    write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results")
    rows = list(csv.DictReader((tmp_path / "results" / "exp" / "table.csv").read_text().splitlines()))
    assert [bool(row["vs_control"]) for row in rows] == [False, False, True, True, True, True]


def test_float_experiments_have_no_such_column(write, training):
    table = _table(write(training(["W8 int"])))
    assert not {"vs_control", "role", "comparison"} & set(table.columns)


def test_words_that_all_copies_share_are_said_once(write, qat_training):
    words = ["first_last", "e8"]
    rows = [qat_training("aa" * 8, words=words), qat_training("bb" * 8, qat={"mask": "rounded"}, words=[*words, "rounded"])]
    lines = format_table(_table(write(*rows))).splitlines()
    assert lines[0].endswith("all copies first_last e8")
    assert "  W4A4 lsq  " in lines[5] and "  W4A4 lsq rounded  " in lines[6]


def test_seeds_of_one_configuration_are_averaged(write, comparison):
    table = _table(write(comparison((0, 1, 2))))
    seeds = seed_table(table).set_index("group")
    assert seeds.index.tolist() == ["float start", "float control", "lsq W4A4", "lsq W2A2", "pact W4A4", "pact W2A2"]
    assert set(seeds["num_seeds"]) == {3}
    points = table[table["group"] == "lsq W4A4"]["vs_control"]
    assert seeds.loc["lsq W4A4", "vs_control_mean"] == pytest.approx(points.mean())
    assert seeds.loc["lsq W4A4", "vs_control_sd"] == pytest.approx(points.std())
    assert f"| {points.mean():.2f} +- {points.std():.2f} |" in markdown("exp", table, seed_table(table))


def test_large_losses_do_not_break_the_table(write, record):
    text = format_table(_table(write([record(loss=18075091410372550004310016.0, kl=1e9), record("fp32", loss=2345.678)])))
    assert "1.81e+25" in text and "1e+09" in text and "2345.6780" in text


def test_a_comparison_is_one_panel_with_the_control(write, comparison):
    records = load_records("exp", write(comparison((0, 1))))
    figure = prec1_by_epoch(records)
    names = [" ".join(text.split()[:2]) for text in _legend(figure)]
    assert names == ["float control", "lsq W4A4", "lsq W2A2", "pact W4A4", "pact W2A2"]
    axes = figure.axes[-1]
    assert len(figure.axes) <= 2 and len(axes.get_lines()) == 5
    for name, part in records[(records["role"] == "qat") & (records["variant"] != FLOAT_VARIANT)].groupby("curve"):
        assert tuple(part.groupby("epoch")["prec1"].mean()) in _lines(axes), name
    plain = records[records["role"] == "control"].groupby("epoch")["prec1"].mean()
    line = _lines(axes)[tuple(plain)]
    assert line.get_color() == "#000000" and line.get_linewidth() > 2 and line.get_linestyle() == "-"
    assert "mean over seeds" in figure.get_suptitle()


def test_without_a_control_the_start_is_a_level_line(write, comparison):
    records = load_records("exp", write(comparison(control=False)))
    figure = prec1_by_epoch(records)
    assert _legend(figure)[0].split()[:2] == ["float", "start"]
    start = records[(records["role"] == "start") & (records["epoch"] == EPOCHS)]["prec1"].item()
    line = _lines(figure.axes[-1])[(start,) * EPOCHS]
    assert line.get_linewidth() < 1.5 and line.get_linestyle() == "--"


def test_a_start_with_copies_of_its_own_has_its_panel(write, float_training, qat_training):
    start = float_training("f1" * 8, variants=["W4 int", "W2 int"])
    figure = prec1_by_epoch(load_records("exp", write(start, qat_training("aa" * 8))))
    titles = [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes]
    assert [title for title in titles if title != "all variants"] == ["float start", "quantization-aware trainings"]


def test_a_line_per_method_over_bits(write, comparison):
    records = load_records("exp", write(comparison((0, 1))))
    figure = prec1_by_bits(records)
    assert _legend(figure) == ["float control", "lsq", "pact"]
    last = records[records["epoch"] == EPOCHS]
    axes = figure.axes[-1]
    plain = last[last["role"] == "control"]["prec1"].mean()
    assert (plain, plain) in _lines(axes)
    for _, part in last[(last["role"] == "qat") & (last["variant"] != FLOAT_VARIANT)].groupby("method"):
        assert any(y == pytest.approx(tuple(part.groupby("bits")["prec1"].mean())) for y in _lines(axes))
    low, high = axes.get_ylim()
    assert all(
        low < end < high
        for bar in axes.collections
        if isinstance(bar, LineCollection)
        for path in bar.get_paths()
        for _, end in path.vertices
    )


def test_copies_of_the_control_stand_beside_the_methods(write, comparison, float_training):
    rows = comparison(control=False)
    weights = f"/runs/trainings/{'50' * 8}/epochs/0008.safetensors"
    records = load_records("exp", write(rows, float_training("cc" * 8, weights=weights, lr=0.01, variants=["W4 int", "W2 int"])))
    assert _legend(prec1_by_bits(records)) == ["float control", "int after training", "lsq", "pact"]
    (title,) = {axes.get_title(loc="left") for axes in prec1_by_epoch(records).axes[-1:]}
    assert title in ("", "all variants")
    assert summarize(records).set_index("variant").loc["W4 int", ["vs_control", "delta_prec1"]].nunique() == 1


@pytest.mark.parametrize("init", ["none", "checkpoint"])
def test_a_training_alone_is_drawn(write, qat_training, init):
    weights = "w.pt" if init == "checkpoint" else None
    parts = [qat_training("aa" * 8, init=init, weights=weights), qat_training("bb" * 8, bits=2, init=init, weights=weights)]
    records = load_records("exp", write(*parts))
    starts = ["float start"] if init == "checkpoint" else []
    assert [" ".join(text.split()[:2]) for text in _legend(prec1_by_epoch(records))] == [*starts, "lsq W4A4", "lsq W2A2"]
    assert _legend(prec1_by_bits(records)) == [*starts, "lsq"]


def test_through_the_command_line(cli, tiny, tmp_path):
    """One start, two trainings, the control from the start's last epoch, a converted network: one table."""
    common = (*tiny, "name=exp")
    assert cli("qat=lsq", "bits=2,4", "-m", *common).code == 0
    plain = load_records("exp", "runs")
    start = plain[plain["role"] == "start"]["training"].iloc[0]
    weights = tmp_path / "runs" / "trainings" / start / "epochs" / "0001.safetensors"
    done = cli("qat=none", "float_only=true", "train.lr=0.005", f"model.weights={weights}", *common)
    assert done.code == 0, done.err
    converted = sorted(tmp_path.glob("runs/trainings/*/converted.safetensors"))[0]
    evaluated = [argument for argument in tiny if not argument.startswith("train=")]
    done = cli(f"checkpoint={converted}", "name=exp", *evaluated, "draw_figures=true", verb="evaluate")
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "results" / "exp" / "table.csv").read_text().splitlines()))
    labels = [row["label"] for row in rows]
    assert labels[:4] == ["float start", "float control", "lsq W4A4", "lsq W2A2"]
    assert labels[4] == labels[5] and labels[4] in ("converted lsq W4A4", "converted lsq W2A2")
    assert [bool(row["vs_control"]) for row in rows] == [False, False, True, True, False, False]
    points = float(rows[2]["prec1"]) - float(rows[1]["prec1"])
    assert float(rows[2]["vs_control"]) == pytest.approx(points, abs=1e-6)
    assert "vs control" in done.out and (tmp_path / "results" / "exp" / "figures" / "prec1_by_bits.png").exists()
