"""Quantization-aware trainings as whole commands: what is trained once, what is told, and what the converted file is worth."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qexp import trainings as listing
from qexp.experiment import training
from qexp.experiment.evaluator import Evaluator
from qexp.experiment.qat_training import QatTraining
from qexp.qat.convert import load_converted

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def swept(cli, tiny, tmp_path_factory):
    """A folder where `qat=lsq bits=2,4 -m` has run, and what it said."""
    folder, before = tmp_path_factory.mktemp("swept"), os.getcwd()
    os.chdir(folder)
    done = cli(*tiny, "qat=lsq", "bits=2,4", "plan=full", "-m")
    os.chdir(before)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture
def store(swept):
    """A copy of what that sweep left behind, in the working directory."""
    for name in ("runs", "results"):
        shutil.copytree(swept[0] / name, name)
    return swept[1]


@pytest.fixture
def fits(monkeypatch):
    """One entry per training that is begun: is it quantization-aware?"""
    calls, original = [], training.fit

    def counted(model, *arguments, **options):
        calls.append(any("fake_quant" in name or "parametrizations" in name for name, _ in model.named_modules()))
        return original(model, *arguments, **options)

    monkeypatch.setattr(training, "fit", counted)
    return calls


def stored():
    """Hash -> what `training.json` says."""
    return {path.parent.name: json.loads(path.read_text()) for path in Path("runs/trainings").glob("*/training.json")}


def evaluations(runs="runs"):
    rows = [json.loads(line) for path in Path(runs).rglob("variants/*.jsonl") for line in path.read_text().splitlines()]
    return {(row["training"], row["variant"], row["epoch"]): row for row in rows}


def of_bits(bits):
    """The folder of the training at that width."""
    (name,) = [name for name, info in stored().items() if info["identity"].get("qat", {}).get("bits") == bits]
    return Path("runs/trainings", name)


def test_all_widths_begin_from_one_float_training(store):
    assert store.out.startswith(
        "2 jobs: 2 trainings (0 stored), 1 float training to begin from (0 stored), 2 quantized variants\n"
    )
    assert store.out.count("epoch 1/1") == 3
    infos = stored()
    assert sorted(str(info["identity"].get("qat", {}).get("bits")) for info in infos.values()) == ["2", "4", "None"]
    assert {info["status"] for info in infos.values()} == {"done"}
    assert {variant for _, variant, _ in evaluations()} == {"fp32", "W2A2 lsq", "W4A4 lsq"}
    floats = [row["digest"] for (_, variant, _), row in evaluations().items() if variant == "fp32"]
    assert len(floats) == 3 and len(set(floats)) == 1  # the float rows are the network that all began from


def test_the_plan_has_a_line_per_quantized_weight_and_activation(store):
    before = store.out.split("epoch 1/1")[0]
    for name in ("0.weight", "5.weight", "input", "4"):
        assert before.count(f"\n  {name} ") == 1, before
    assert "[W2A2 lsq]" in before and "[W4A4 lsq]" in before


def test_again_nothing_is_trained_or_evaluated_and_one_width_more_is_one_training_more(cli, tiny, store, fits):
    before = {path: path.stat().st_mtime_ns for path in Path("runs/trainings").rglob("*") if path.is_file()}
    again = cli(*tiny, "qat=lsq", "bits=2,4", "-m")
    assert again.code == 0 and again.out.count("nothing to do, every number is stored") == 2
    assert fits == []
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs/trainings").rglob("*") if path.is_file()}
    more = cli(*tiny, "qat=lsq", "bits=2,3,4", "-m")
    assert more.code == 0 and "3 trainings (2 stored), 1 float training to begin from (1 stored)" in more.out
    assert fits == [True] and len(stored()) == 4


def test_a_float_sweep_that_is_stored_is_what_training_begins_from(cli, tiny, store, fits):
    (start,) = [name for name, info in stored().items() if "qat" not in info["identity"]]
    shutil.rmtree("runs")
    assert cli(*tiny, "bits=4", "-m").code == 0
    assert list(stored()) == [start] and fits == [False]
    assert cli(*tiny, "qat=lsq,pact", "bits=4", "-m").code == 0
    assert fits == [False, True, True] and len(stored()) == 3


def test_plain_float_and_qat_in_one_sweep_share_the_float_training(cli, tiny, fits):
    done = cli(*tiny, "qat=lsq,none", "bits=4", "-m")
    assert done.code == 0 and "2 trainings (0 stored), 2 quantized variants" in done.out
    assert sorted(fits) == [False, True]
    assert {variant for _, variant, _ in evaluations()} == {"fp32", "W4 int", "W4A4 lsq"}


def test_fresh_trains_anew_but_not_what_it_begins_from(cli, tiny, store, fits):
    before = stored()
    assert cli(*tiny, "qat=lsq", "bits=4", "fresh=true").code == 0
    assert fits == [True] and stored().keys() == before.keys()


def test_a_converted_file_that_was_lost_is_made_again(cli, tiny, store, fits):
    file = of_bits(4) / "converted.safetensors"
    content = file.read_bytes()
    file.unlink()
    assert cli(*tiny, "qat=lsq", "bits=4").code == 0
    assert file.read_bytes() == content and fits == []


def test_plan_only_says_what_would_be_trained(cli, tiny, store, fits):
    asked = cli(*tiny, "qat=lsq", "bits=2,3", "seed=0,1", "plan_only=true", "-m")
    assert asked.code == 0
    assert "4 jobs: 4 trainings (1 stored), 2 float trainings to begin from (1 stored), 4 quantized variants" in asked.out
    assert asked.out.count("for the float training to begin from") == 2
    assert "in all: 4 trainings and 2 float trainings to begin from, about " in asked.out
    assert fits == [] and len(stored()) == 3


def test_trainings_are_listed_by_method_and_width(store, capsys):
    listing.run(listing.TrainingsSettings())
    lines = capsys.readouterr().out.splitlines()
    assert sorted(" ".join(line.split()[3:-4]) for line in lines[1:-1]) == ["float", "lsq 2 bits", "lsq 4 bits"], lines


def test_the_table_has_method_widths_and_the_float_network(store):
    with open("results/digits/table.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert sorted({(row["variant"], row["quant"], row["bits"]) for row in rows}) == [
        ("W2A2 lsq", "lsq", "2"), ("W4A4 lsq", "lsq", "4"), ("fp32", "", "32"),
    ]  # fmt: skip
    assert {row["ranges"] for row in rows if row["variant"] != "fp32"} == {"as trained"}


@pytest.mark.parametrize("options", [(), ("qat.batch_norm=folded", "quant.weight.granularity=per_channel")])
def test_the_converted_file_is_the_training_to_the_image(cli, tiny, store, options):
    assert cli(*tiny, "qat=lsq", "bits=4", "train.epochs=2", *options).code == 0
    name = next(name for name, info in stored().items() if "qat" in info["identity"] and info["epochs"] == 2)
    trained = evaluations()[name, next(v for t, v, _ in evaluations() if t == name and v != "fp32"), 2]
    done = cli(*tiny, f"checkpoint=runs/trainings/{name}/converted.safetensors", verb="evaluate")
    assert done.code == 0, done.err
    found = {row["variant"]: row for (training, *_), row in evaluations("runs/checkpoints").items()}
    assert set(found) == {"fp32", trained["variant"]}
    for key in ("digest", "prec1", "prec5", "loss", "n", "bits"):
        assert found[trained["variant"]][key] == trained[key], key
    assert found[trained["variant"]]["alarms"] == []


def test_the_converted_state_fits_the_plain_network_and_has_few_values(prepared, store):
    converted = load_converted(of_bits(2) / "converted.safetensors")
    network = prepared().network()
    network.load_state_dict(converted.state)
    assert {len(converted.state[name].unique()) for name in ("0.weight", "5.weight")} <= {2, 3, 4}
    assert not any("parametrizations" in name or "fake_quant" in name for name in converted.state)
    assert any("parametrizations" in name for name in load_file(of_bits(2) / "epochs" / "0001.safetensors"))


def refused(done):
    assert done.code == 2
    first, *rest = done.err.splitlines()
    assert first == "qexp: nothing was started." and "Traceback" not in done.err
    assert not Path("runs/checkpoints").exists()
    (line,) = rest
    return line


def test_a_converted_file_on_other_data_is_an_alarm(cli, tiny, store):
    done = cli(*tiny, f"checkpoint={of_bits(4) / 'converted.safetensors'}", "data.num_train=100", verb="evaluate")
    assert done.code == 0, done.err
    found = [row["alarms"] for (name, _, epoch), row in evaluations().items() if epoch == 0]
    assert found == [["trained on other data than this: data=digits with another content or split"]] * 2


def test_what_evaluate_does_not_do_with_a_converted_file(cli, tiny, store):
    file = of_bits(4) / "converted.safetensors"
    checkpoint = f"checkpoint={file}"
    line = refused(cli(*tiny, checkpoint, "bits=2,4", "-m", verb="evaluate"))
    assert str(file) in line and "one job for a converted network" in line and "sweep over bits" in line
    others = [text for text in tiny if not text.startswith("model")]
    line = refused(cli(*others, "model=resnet32", checkpoint, verb="evaluate"))
    assert "checkpoint=" in line and "It holds another network: give model=custom data=" in line
    line = refused(cli(*tiny, checkpoint, "qat=lsq", verb="evaluate"))
    assert "qat=lsq" in line and "none in qexp.evaluate" in line and "qat.init=checkpoint" in line


@pytest.mark.parametrize("length", [0, 100, 2000, -1], ids=["empty", "in the header", "in the tensors", "the last byte"])
def test_a_damaged_converted_file_is_refused(cli, tiny, store, length):
    file = of_bits(4) / "converted.safetensors"
    Path("cut.safetensors").write_bytes(file.read_bytes()[:length])
    line = refused(cli(*tiny, "checkpoint=cut.safetensors", verb="evaluate"))
    assert "checkpoint=cut.safetensors" in line


class Deaf(nn.Module):
    """The quantized copy in name, the float network at work: what a mistake in `assemble` might make."""

    def __init__(self, copy, network):
        super().__init__()
        self.copy, self.network = copy, network
        self.eval()

    def forward(self, images):
        return self.network(images)

    def named_parameters(self, *arguments, **options):
        return self.copy.named_parameters(*arguments, **options)


def begun(prepared, **changes):
    """A state as it stands before the first step, and what evaluates it."""
    merged = prepared({"qat.name": "lsq", "qat.init": "none", "bits": 4, **changes})
    qat = QatTraining(merged, CPU)
    state = qat.begin(calibrate=True)[0].state_dict()
    return Evaluator(merged, CPU, qat), merged, state


def test_weights_alone_need_no_calibration_images(prepared):
    _, merged, state = begun(prepared, **{"qat.name": "ste", "qat.activations": False, "data.num_calib": 0})
    assert not any("fake_quant" in name for name in state) and merged.variants[1].label == "W4 ste"


def test_no_alarms_where_all_is_well(prepared):
    evaluator, merged, state = begun(prepared)
    assert [item.alarms for item in evaluator.score(state, merged.variants, {})] == [(), ()]


def test_batch_norms_that_stay_unfolded_are_an_alarm(prepared):
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    layers = nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU()\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    evaluator, merged, state = begun(prepared, **{"model.factory": "net.py:make", "qat.batch_norm": "folded"})
    of_float, quantized = evaluator.score(state, merged.variants, {})
    alarm = "qat.batch_norm=folded: fold_bn folded 1 of 2 batch norms: not folded, its input is not the output"
    assert not of_float.alarms and any(text.startswith(alarm) for text in quantized.alarms)


def test_a_copy_that_is_not_executed_raises_an_alarm(prepared, monkeypatch):
    evaluator, merged, state = begun(prepared)
    plain = merged.network().eval()
    monkeypatch.setattr(QatTraining, "build", lambda self, state, built=QatTraining.build: Deaf(built(self, state), plain))
    scored = evaluator.score(state, merged.variants, {})
    assert scored[1].alarms == ("weights not in use: 0.weight, 5.weight",)


def test_logits_that_are_not_finite_raise_an_alarm(prepared):
    evaluator, merged, state = begun(prepared)
    state["5.bias"][3] = float("inf")
    assert "non-finite logits" in evaluator.score(state, merged.variants, {})[1].alarms


def test_evaluating_leaves_the_trained_state_and_its_modes_alone(prepared):
    evaluator, merged, state = begun(prepared, **{"qat.name": "ste"})
    before = {name: value.clone() for name, value in state.items()}
    first = evaluator.score(state, merged.variants, {})
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    second = evaluator.score(state, merged.variants, {})
    assert [item.evaluation.digest for item in first] == [item.evaluation.digest for item in second]
