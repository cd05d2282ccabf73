"""Whole commands in this process: what a sweep trains, evaluates, reuses and refuses."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from qexp.engine import fit as fit_module
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment import training as training_module
from qexp.sweep import run
from qexp.sweep.arguments import clean_arguments
from qexp.sweep.compose import conf_dir

COLUMNS = "training variant bits mode policy quant granularity seed epoch prec1 prec5 loss delta_prec1 n size_bytes state"
SWEEP = ("bits=4,8", "mode=int,float", "-m")


def table(name="digits"):
    with open(f"results/{name}/table.csv") as handle:
        return list(csv.DictReader(handle))


def trainings():
    return sorted(path.name for path in Path("runs/trainings").glob("*"))


def variants(rows):
    return [row["variant"] for row in rows]


@pytest.fixture(scope="module")
def finished(cli, tiny, tmp_path_factory):
    """A folder where `bits=4,8 mode=int,float -m` has run, and what it said."""
    folder, before = tmp_path_factory.mktemp("finished"), os.getcwd()
    os.chdir(folder)
    try:
        return folder, cli(*tiny, *SWEEP)
    finally:
        os.chdir(before)


@pytest.fixture
def store(finished, tmp_path):
    """A copy of that folder as the working directory."""
    for name in ("runs", "results"):
        shutil.copytree(finished[0] / name, name)
    return finished[1]


@pytest.fixture
def counted(monkeypatch):
    """Names of the trainings done and of the variants evaluated, as they happen."""
    seen = {"fit": 0, "scored": []}
    fit, score = training_module.fit, training_module.Evaluator.score

    def counted_fit(*args, **kwargs):
        seen["fit"] += 1
        return fit(*args, **kwargs)

    def counted_score(self, state, wanted, *more):
        seen["scored"] += [variant.label for variant in wanted]
        return score(self, state, wanted, *more)

    monkeypatch.setattr(training_module, "fit", counted_fit)
    monkeypatch.setattr(training_module.Evaluator, "score", counted_score)
    return seen


def test_arguments_are_put_in_an_order_that_hydra_takes():
    expected = ["-m", "bits=4,8", "seed=1"]
    for arguments in (["-m", "bits=4,8", "seed=1"], ["bits=4,8", "-m", "seed=1"], ["bits=4,8", "seed=1", "-m"]):
        assert clean_arguments(arguments) == expected
        assert clean_arguments(["--local-rank=1", *arguments, "--local_rank=0"]) == expected
    assert clean_arguments(["bits=4"]) == ["bits=4"]
    assert clean_arguments(["--multirun", "bits=4", "-m"]) == ["--multirun", "bits=4"]


def test_the_values_lie_where_they_are_read():
    assert (conf_dir() / "config.yaml").is_file() and (conf_dir() / "experiment").is_dir()


def test_a_sweep_trains_once_and_reports_every_variant(store):
    assert store.code == 0 and store.err == ""
    assert store.out.startswith("4 jobs: 1 training (0 stored), 4 quantized variants\n")
    (training,) = trainings()
    rows = table()
    assert set(COLUMNS.split()) <= set(rows[0])
    assert variants(rows) == ["fp32", "W8 int", "W8 float", "W4 int", "W4 float"]
    assert {row["training"] for row in rows} == {training}
    assert {(row["epoch"], row["n"], row["state"], row["seed"]) for row in rows} == {("1", "360", "done", "0")}
    assert [row["bits"] for row in rows] == ["32", "8", "8", "4", "4"]
    for row in rows:
        assert float(row["delta_prec1"]) == pytest.approx(float(row["prec1"]) - float(rows[0]["prec1"]))
        assert 0 <= float(row["prec1"]) <= float(row["prec5"]) <= 100
    assert {"epochs.csv", "table.md", "table.csv"} <= {path.name for path in Path("results/digits").iterdir()}
    for text in ("Prec@1", "W4 float", "tables: results/digits/"):
        assert text in store.out
    assert not Path("runs/jobs").exists()  # which holds the output of workers


def test_eight_epochs_of_twelve_variants_are_sixty_lines(cli, tiny):
    """Whatever the network; how often progress is told where there is no terminal is the machine's matter, and not counted."""
    done = cli(*tiny, "train.epochs=8", f"bits={','.join(map(str, range(2, 14)))}", "-m")
    lines = [line for line in done.out.splitlines() if " · " not in line]
    assert done.code == 0 and len(lines) <= 52, done.out
    (planned,) = (line for line in lines if "MiB stored" in line)  # those of more than eight that differ in width alone
    assert planned.startswith("[W2 int, W3 int, W4 int, ") and "] W2|3|4|5|6|7|8|9|10|11|12|13A32 (activations fp32)" in planned
    told = [line for line in lines if line.startswith("  epoch ")]
    assert len(told) == 8 and all(line.count("fp32") == 1 and line.count(" int ") == 12 for line in told)


def test_figures_are_drawn_where_asked_for_and_none_is_left_that_shows_other_numbers(store, cli, tiny):
    folder, page, shown = Path("results/digits/figures"), Path("results/digits/report.html"), 'class="figure"'
    assert not folder.exists() and shown not in page.read_text()
    done = cli(*tiny, *SWEEP, "draw_figures=true")
    assert done.code == 0 and "tables and figures: results/digits/" in done.out
    assert {"prec1_by_bits.svg", "prec1_by_bits.png"} <= {path.name for path in folder.iterdir()}
    assert shown in page.read_text()
    (folder / "of_mine.png").touch()
    assert cli(*tiny, "bits=2").code == 0
    assert [path.name for path in folder.iterdir()] == ["of_mine.png"] and shown not in page.read_text()


def test_the_same_sweep_again_trains_and_evaluates_nothing(store, cli, tiny, counted):
    folder = Path("runs/trainings") / trainings()[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
    rows = table()
    done = cli(*tiny, *SWEEP)
    assert done.code == 0
    assert "4 jobs: 1 training (1 stored), 4 quantized variants" in done.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert counted == {"fit": 0, "scored": []}
    assert table() == rows


def test_another_width_evaluates_only_that(store, cli, tiny, counted):
    rows = table()
    assert cli(*tiny, "bits=2").code == 0
    assert counted == {"fit": 0, "scored": ["W2 int"]}
    assert len(trainings()) == 1
    assert variants(table()) == [*variants(rows), "W2 int"]
    assert [row["prec1"] for row in table()][:-1] == [row["prec1"] for row in rows]


def test_two_learning_rates_are_two_trainings_told_apart(store, cli, tiny, counted):
    assert cli(*tiny, "train.lr=0.05,0.01", "bits=4,8", "-m").code == 0
    assert counted["fit"] == 1
    assert len(trainings()) == 2
    rows = table()
    labels = {row["training"]: row["label"] for row in rows}
    assert sorted(labels.values()) == ["lr=0.01", "lr=0.05"]
    by_label = {label: variants(row for row in rows if row["label"] == label) for label in labels.values()}
    assert by_label == {"lr=0.05": ["fp32", "W8 int", "W8 float", "W4 int", "W4 float"], "lr=0.01": ["fp32", "W8 int", "W4 int"]}


def test_fresh_trains_and_evaluates_again(store, cli, tiny, counted):
    folder = Path("runs/trainings") / trainings()[0]
    before, rows = json.loads((folder / "training.json").read_text()), table()
    stamp = (folder / "train.jsonl").stat().st_mtime_ns
    done = cli(*tiny, "bits=4", "fresh=true")
    assert done.code == 0 and "1 training (0 stored)" in done.out
    assert counted == {"fit": 1, "scored": ["fp32", "W4 int"]}
    assert (folder / "train.jsonl").stat().st_mtime_ns > stamp
    assert json.loads((folder / "training.json").read_text())["identity"] == before["identity"]
    assert len(list((folder / "variants").glob("*.jsonl"))) == 2
    assert [row["prec1"] for row in table()] == [row["prec1"] for row in rows]


def test_another_name_reuses_the_training(store, cli, tiny, counted):
    assert cli(*tiny, "bits=8,4", "name=other", "-m").code == 0
    assert counted == {"fit": 0, "scored": []}
    rows = {row["variant"]: row for row in table("other")}
    assert list(rows) == ["fp32", "W8 int", "W4 int"]
    assert rows["W4 int"]["reused"] == "True"
    assert rows["W4 int"]["loss"] == next(row["loss"] for row in table() if row["variant"] == "W4 int")


def test_policies_are_compared_on_one_training(store, cli, tiny, counted):
    done = cli(
        *tiny,
        "policy=uniform,conv_linear,first_last",
        "bits=4",
        "policy.linear_bits=8",
        "policy.edge_bits=6",
        "name=policies",
        "-m",
    )
    assert done.code == 0 and "3 jobs: 1 training (1 stored), 3 quantized variants" in done.out
    assert counted == {"fit": 0, "scored": ["W4 int conv_linear c4 l8", "W4 int first_last e6"]}
    rows = {row["policy"]: row for row in table("policies")}
    assert sorted(rows) == ["", "conv_linear", "first_last", "uniform"]
    assert len({row["plan_hash"] for row in rows.values()}) == 4
    assert len({rows[policy]["size_bytes"] for policy in ("uniform", "conv_linear", "first_last")}) == 3


def test_plan_only_starts_nothing(cli, tiny):
    done = cli(*tiny, "bits=4,8", "plan_only=true", "train.epochs=5", "-m")
    assert done.code == 0
    assert "2 jobs: 1 training (0 stored), 2 quantized variants" in done.out
    assert "0.weight" in done.out and "nothing was started (plan_only)" in done.out
    assert not Path("runs/trainings").exists() and not Path("results").exists() and not Path("runs/journal").exists()


def test_only_the_last_epoch_stays(cli, tiny):
    done = cli(*tiny, "bits=4", "train.epochs=3", "trajectory.keep=last")
    assert done.code == 0
    (name,) = trainings()
    training = TrajectoryStore("runs").open(name)
    assert training.epochs() == [3] and training.is_complete
    assert [line["epoch"] for line in training.log()] == [1, 2, 3]
    assert not list(training.folder.glob("*.pt"))
    with open("results/digits/epochs.csv") as handle:
        assert [row["epoch"] for row in csv.DictReader(handle) if row["variant"] == "W4 int"] == ["1", "2", "3"]
    late = cli(*tiny, "bits=2", "train.epochs=3", "trajectory.keep=last")
    assert late.code == 0
    assert next(row for row in table() if row["variant"] == "W2 int")["notes"] == "1 of 3 epochs"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_multirun_flag_goes_anywhere(cli, tiny, place):
    arguments = [*tiny, "bits=4,8", "plan_only=true"]
    arguments.insert((0, 3, len(arguments))[place], "-m")
    done = cli(*arguments)
    assert done.code == 0 and done.out.startswith("2 jobs: 1 training (0 stored)")


def test_a_stored_epoch_scores_as_it_was_recorded(store, cli, tiny):
    (file,) = Path("runs/trainings").glob("*/epochs/0001.safetensors")
    arguments = [*tiny, f"checkpoint={file}", "bits=4,8", "name=again", "-m"]
    done = cli(*arguments, verb="evaluate")
    assert done.code == 0
    recorded = {row["variant"]: row for row in table()}
    again = {row["variant"]: row for row in table("again")}
    assert list(again) == ["fp32", "W8 int", "W4 int"]
    for name, row in again.items():
        assert [row[key] for key in ("prec1", "prec5", "loss", "n")] == [
            recorded[name][key] for key in ("prec1", "prec5", "loss", "n")
        ]
    assert len(trainings()) == 1
    before = sorted(Path("runs/checkpoints").rglob("*.safetensors"))
    assert len(before) == 3
    assert cli(*arguments, verb="evaluate").code == 0
    assert table("again") == list(again.values())


def test_a_training_that_diverges_is_said_and_exits_1(cli, tiny):
    done = cli(*tiny, "train.lr=1e30", "bits=4")
    assert done.code == 1
    assert "DivergenceError" in done.err and "1 of 1 trainings failed" in done.err
    assert "Traceback" not in done.err and "nothing was started" not in done.err
    assert list(Path("runs/trainings").glob("*/traceback.txt"))


def test_the_other_trainings_of_a_sweep_go_on(cli, tiny):
    done = cli(*tiny, "train.lr=1e30,0.1", "bits=4", "-m")
    assert done.code == 1 and "1 of 2 trainings failed" in done.err
    assert variants(table()) == ["fp32", "W4 int"]
    journal = [json.loads(line) for line in Path("runs/journal/digits.jsonl").read_text().splitlines()]
    assert sorted(row["status"] for row in journal if row["kind"] == "end") == ["FAILED", "FAILED", "FINISHED", "FINISHED"]


def test_an_interrupted_training_goes_on(cli, tiny, monkeypatch, counted):
    arguments = (*tiny, "bits=4", "train.epochs=3", "deterministic=true")
    assert cli(*arguments, "name=whole", "runs_dir=elsewhere").code == 0
    epoch, done = fit_module._Loop.epoch, []

    def interrupted(self, number, *rest):
        if number == 3:
            raise KeyboardInterrupt
        done.append(number)
        return epoch(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Loop, "epoch", interrupted)
        stopped = cli(*arguments)
        assert stopped.code == 130 and "The same command goes on where this one stopped." in stopped.err
        assert done == [1, 2]
    counted["scored"].clear()
    resumed = cli(*arguments)
    assert resumed.code == 0 and "1 training (0 stored)" in resumed.out
    assert counted["scored"] == ["fp32", "W4 int"]
    whole, pieces = ([(row["variant"], row["prec1"], row["loss"]) for row in table(name)] for name in ("whole", "digits"))
    assert whole == pieces


def test_a_broken_program_shows_its_traceback_and_exits_1(cli, tiny, monkeypatch):
    monkeypatch.setattr(run, "group", lambda configs: 1 / 0)
    done = cli(*tiny)
    assert done.code == 1 and "ZeroDivisionError" in done.err and "nothing was started" not in done.err
