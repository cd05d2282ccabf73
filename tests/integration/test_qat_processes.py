"""Quantization-aware trainings in real processes: killed and stopped, side by side, and on two ranks."""

import csv
import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from qexp.reporting.frames.jobs import load_jobs

STEPS = 7  # of an epoch
NETWORK = Path(__file__).with_name("traceable.py")


@pytest.fixture(scope="module")
def command(tiny):
    """A float training of one epoch, and two epochs with quantizers; a state is stored every third step."""
    kept = [text for text in tiny if not text.startswith("model.factory=")]
    train = ("train.batch_size=180", "qat.epochs=2", "train.checkpoint_every_steps=3", "deterministic=true", "bits=3")
    return (*kept, f"model.factory={NETWORK}:Traceable", *train)


@pytest.fixture(scope="module")
def started(warm, command, tmp_path_factory):
    """A store that holds the float training."""
    folder, before = tmp_path_factory.mktemp("started"), os.getcwd()
    os.chdir(folder)
    child = warm.start(*(text for text in command if not text.startswith("qat.")), "float_only=true")
    assert child.wait() == 0, child.text
    os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ranks, command, started, numbers, tmp_path_factory):
    """(ranks, overrides) -> the numbers of that training from the stored float one, done once."""
    found = {}

    def numbers_of(count, *overrides):
        if (count, overrides) not in found:
            before = os.getcwd()
            os.chdir(tmp_path_factory.mktemp("undisturbed"))
            shutil.copytree(started / "runs", "runs")
            children = ranks(count, *command, *overrides)
            assert [child.wait() for child in children] == [0] * count, children[0].text
            found[count, overrides] = numbers()
            os.chdir(before)
        return found[count, overrides]

    return numbers_of


def assert_same(expected, found):
    for key, value in expected.items():
        assert found[key] == value, key
    assert not list(Path("runs").rglob("*.tmp")) and not list(Path("runs").rglob("*.pt"))


FOLDED = ("qat=ste", "qat.batch_norm=folded", "qat.mask=rounded")
DISTILLED = ("qat=lsq", "qat.distill_weight=0.5", "qat.freeze_bn_epoch=2")


@pytest.mark.parametrize(
    "count, method, step, how",
    [
        (1, FOLDED, STEPS + 1, "SIGKILL"),
        (1, DISTILLED, STEPS + 2, "SIGTERM"),
        pytest.param(1, DISTILLED, STEPS + 5, "SIGKILL", marks=pytest.mark.slow),
        pytest.param(1, ("qat=pact",), 3, "SIGTERM", marks=pytest.mark.slow),
        pytest.param(2, FOLDED, STEPS + 5, "SIGKILL", marks=pytest.mark.slow),
        pytest.param(2, DISTILLED, STEPS + 2, "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_ends_in_the_same_bits(ranks, command, started, undisturbed, numbers, count, method, step, how):
    expected = undisturbed(count, *method)
    shutil.copytree(started / "runs", "runs")
    hurt = {"MORTAL_STEP": str(step), "MORTAL_HOW": how, "MORTAL_RANK": str(count - 1)}
    stopped = ranks(count, *command, *method, **hurt)
    codes = [child.wait() for child in stopped]
    if how == "SIGTERM":
        assert codes == [143] * count
        (mark,) = Path("runs/trainings").glob("*/PREEMPTED")
        assert f"after batch {(step + count - 1) % STEPS}\n" in mark.read_text()
    else:
        assert codes[-1] == -signal.SIGKILL and 0 not in codes
    again = ranks(count, *command, *method)
    assert [child.wait() for child in again] == [0] * count, again[0].text
    assert ": going on " in again[0].text
    assert_same(expected, numbers())


@pytest.mark.parametrize(
    "how, place",
    [("SIGKILL", "batch 3"), pytest.param("SIGTERM", "batch 5", marks=pytest.mark.slow)],
)
def test_a_process_that_ends_while_the_float_network_trains_goes_on_there(warm, command, undisturbed, numbers, how, place):
    expected = undisturbed(1, "qat=lsq")
    stopped = warm.start(*command, "qat=lsq", MORTAL_STEP="5", MORTAL_HOW=how)
    assert stopped.wait() == (143 if how == "SIGTERM" else -signal.SIGKILL), stopped.text
    assert len(list(Path("runs/trainings").iterdir())) == 1
    assert list(load_jobs("digits", "runs")["state"]) == ["preempted" if how == "SIGTERM" else "killed"]
    again = warm.start(*command, "qat=lsq")
    assert again.wait() == 0, again.text
    assert again.text.count(": going on ") == 1 and f"going on in epoch 1, after {place} of " in again.text
    assert_same(expected, numbers())


@pytest.mark.slow
def test_workers_side_by_side_wait_for_the_one_float_training(cli, command, undisturbed, numbers):
    sweep = ("qat=lsq,pact", "hydra.launcher.inner=joblib", "hydra.launcher.n_jobs=2", "-m")
    done = cli(*command, *sweep)
    assert done.code == 0, done.err
    texts = [path.read_text() for path in sorted(Path("runs/jobs").rglob("*.log"))]
    said = "\n".join(texts)
    assert said.count("epoch 1/1") == 1 and said.count("epoch 2/2") == 2
    found = numbers()["files"]
    for method in ("qat=lsq", "qat=pact"):
        assert undisturbed(1, method)["files"].items() <= found.items()


@pytest.mark.slow
def test_two_ranks_train_convert_and_evaluate(ranks, command):
    children = ranks(2, *command, "qat=lsq,ste", "-m")
    assert [child.wait() for child in children] == [0, 0], children[0].text
    with open("results/digits/table.csv") as handle:
        table = list(csv.DictReader(handle))
    assert {row["trained_by"] for row in table} == {"2"} and {row["alarms"] for row in table} == {""}
    rows = [json.loads(line) for path in Path("runs").rglob("variants/*.jsonl") for line in path.read_text().splitlines()]
    last = {row["training"]: row for row in rows if row["epoch"] == 2 and row["variant"] != "fp32"}
    assert len(last) == 2
    for training, row in last.items():
        for count in (1, 2):
            read = [word for word in command if not word.startswith(("train.", "qat."))]  # where nothing trains
            evaluate = (*read, f"checkpoint=runs/trainings/{training}/converted.safetensors", f"runs_dir=by{count}")
            children = ranks(count, *evaluate, verb="evaluate")
            assert [child.wait() for child in children] == [0] * count, children[0].text
            found = [json.loads(path.read_text()) for path in Path(f"by{count}").rglob("variants/*.jsonl")]
            assert row["digest"] in {each["digest"] for each in found}, (training, count)


def test_mlflow_has_parameters_and_metrics_of_the_training(cli, command, tracked_here):
    assert cli(*command, "qat=lsq", "tracking.enabled=true", "bits=2,3", "-m").code == 0
    with sqlite3.connect("runs/mlflow.db") as store:
        runs = dict(store.execute("select name, run_uuid from runs where lifecycle_stage = 'active'"))
        query = "select key, value from %s where run_uuid = ?"
        params = {name: dict(store.execute(query % "params", (run,))) for name, run in runs.items()}
        metrics = {name: dict(store.execute(query % "metrics", (run,))) for name, run in runs.items()}
        statuses = {status for (status,) in store.execute("select status from runs")}
    assert {"W2A2 lsq", "W3A3 lsq"} <= set(runs) and len(runs) == 5 and statuses == {"FINISHED"}
    of = params["W2A2 lsq"]
    assert (of["qat.name"], of["qat.bits"], of["qat.init"], of["bits"], of["train.epochs"]) == ("lsq", "2", "training", "2", "2")
    assert float(of["train.lr"]) == pytest.approx(0.005)
    assert {"prec1", "prec5", "loss", "delta_prec1"} <= metrics["W2A2 lsq"].keys()
    parents = [name for name in runs if name.startswith("custom ")]
    assert len(parents) == 3 and all("train_loss" in metrics[name] for name in parents)
