"""Copies that take more than rounding weights, through the whole of qexp.train on a network of a few hundred weights."""

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from qexp.ptq.calibration import Calibration


def rows(name="digits"):
    with open(f"results/{name}/table.csv") as handle:
        return {row["variant"]: row for row in csv.DictReader(handle)}


def test_activations_have_a_width_of_their_own(cli, tiny):
    command = (*tiny, "quant=affine", "bits=8", "quant.activation.bits=null,8,3", "plan=full", "-m")
    done = cli(*command)
    assert done.code == 0, done.err
    found = rows()
    assert list(found) == ["fp32", "W8 int affine", "W8A8 int affine", "W8A3 int affine"]
    sqnr = [float(found[name]["logit_sqnr_db"]) for name in list(found)[1:]]
    assert sqnr[0] > sqnr[1] > sqnr[2]
    assert [found[name]["activation_bits"] for name in found] == ["", "", "8", "3"]
    assert found["W8A8 int affine"]["ranges"] == "weights minmax, activations minmax"
    assert "W8A8 (activations static affine per_tensor)" in done.out and "made by" in done.out
    (folder,) = Path("runs/trainings").iterdir()
    calibration = Calibration.load(folder / found["W8A8 int affine"]["calibration"])
    assert calibration.split == "calib" and calibration.num_images == 100
    again = cli(*command)
    assert "nothing to do" in again.out


def test_settings_that_nothing_reads_make_no_other_variant(cli, tiny):
    """In a file of cases; on the command line they are refused."""
    Path("experiment").mkdir()
    cases = [["calibrate=minmax"], ["calibrate=mse", "calibrate.num_bins=512"], ["calibrate.num_bins=1024"]]
    cases += [["quant=affine", "quant.activation.bits=8", f"calibrate.num_bins={number}"] for number in (512, 1024)]
    Path("experiment/unread.yaml").write_text(f"# @package _global_\ncases: {json.dumps(cases)}\n")
    done = cli("--config-dir=.", *tiny, "experiment=unread", "bits=8", "-m")
    assert done.code == 0, done.err
    assert sorted(rows()) == ["W8 int", "W8A8 int affine", "fp32"]


def test_folding_and_equalizing_preserve_the_network(cli, tiny):
    done = cli(*tiny, "bits=16", "quant=symmetric_restricted", "correct.fold_bn=true", "correct.equalize=false,true", "-m")
    assert done.code == 0, done.err
    for name, row in rows().items():
        assert name == "fp32" or (float(row["logit_sqnr_db"]) > 60 and not row["alarms"]), name


def test_each_correction_is_one_switch(cli, tiny):
    grid = ("quant=symmetric_restricted", "bits=3", "quant.weight.granularity=per_channel", "correct.fold_bn=true")
    corrections = ("correct.bias=none,empirical,analytic", "correct.adaround=false,true", "correct.adaround_iterations=200")
    done = cli(*tiny, *grid, *corrections, "-m")
    assert done.code == 0, done.err
    found = rows()
    assert len(found) == 7
    loss = {row["corrections"]: float(row["kl"]) for row in found.values() if row["corrections"]}
    assert loss["fold_bn, adaround"] < loss["fold_bn"]
    assert loss["fold_bn, bias_empirical"] < loss["fold_bn"]


def test_error_feedback_is_a_switch_and_biases_are_corrected_after_it(cli, tiny):
    grid = ("quant=symmetric_restricted", "bits=3", "quant.weight.granularity=per_channel", "correct.fold_bn=true")
    methods = ["correct.gptq=true", "correct.gpfq=true", "correct.qronos=true"]
    cases = [[method, "correct.bias=none,empirical"] for method in methods]
    cases += [[], ["correct.equalize=true", methods[0], "correct.feedback_act_order=true"]]
    done = cli(*tiny, *grid, f"cases={json.dumps(cases)}", "-m")
    assert done.code == 0, done.err
    found = rows()
    assert len(found) == 9 and not any(row["alarms"] for row in found.values())
    kl = {row["corrections"]: float(row["kl"]) for row in found.values() if row["corrections"]}
    for method in ("gptq", "gpfq", "qronos"):
        assert kl[f"fold_bn, {method}"] < kl["fold_bn"] and f"fold_bn, {method}, bias_empirical" in kl
    assert any(name.endswith("fold_bn equalize gptq act_order") for name in found)


def test_the_dynamic_range_is_the_batchs_and_needs_no_images(cli, tiny):
    arguments = ("quant=affine", "bits=8", "quant.activation.bits=8", "quant.activation.dynamic=true", "data.num_calib=0")
    done = cli(*tiny, *arguments)
    assert done.code == 0, done.err
    row = rows()["W8A8 int affine dynamic"]
    assert row["calibration"] == "" and float(row["logit_sqnr_db"]) > 25


def test_calibrating_on_the_test_split_is_stamped_on_the_number(cli, tiny):
    done = cli(*tiny, "quant=affine", "bits=8", "quant.activation.bits=8", "calibrate.split=test")
    assert done.code == 0, done.err
    assert "calibrated on test images" in rows()["W8A8 int affine"]["alarms"]
    assert "calibrated on test images" in done.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["quant.activation.bits=8", "data.num_calib=0"], "calibrate.split=calib: allowed is a split that holds images"),
        (["correct.adaround=true", "calibrate.num_images=5000"], "calibrate.num_images=5000: allowed is at most 100"),
        (["correct.adaround=true", "calibrate.draw=1"], "calibrate.draw=1: allowed is 0 where all 100 images of the calib split"),
        (["correct.gptq=true", "correct.gpfq=true"], "correct.gptq=true: allowed is false with correct.gpfq"),
        (["correct.gpfq=true", "correct.feedback_damping=0.1"], "correct.feedback_damping=0.1. No job reads it"),
        (["correct.equalize=true"], "correct.equalize=true: allowed is true only with correct.fold_bn=true"),
        (["calibrate=bn", "correct.fold_bn=true", "correct.equalize=true"], "calibrate=bn: allowed is another method"),
        (["calibrate=entropy"], "calibrate=entropy: allowed is"),
        (["quant.activation.bits=17"], "quant.activation.bits=17"),
        (
            ["policy=rules", "policy.rules=[{match: '*'}, {match: layer9, role: activation, bits: 4}]"],
            "allowed is a rule that matches an activation",
        ),
    ],
)
def test_bad_input_starts_nothing(cli, tiny, arguments, message):
    done = cli(*tiny, *arguments)
    assert done.code == 2 and message in done.err, done.err
    assert not Path("runs/trainings").exists()


def test_two_states_of_one_training_are_calibrated_apart(cli, tiny):
    assert cli(*tiny, "train.epochs=2", "quant=affine", "bits=8", "quant.activation.bits=8").code == 0
    (path,) = [path for path in Path("runs/trainings").glob("*/variants/*.jsonl") if "W8A8" in path.read_text()]
    files = [json.loads(line)["calibration"] for line in path.read_text().splitlines()]
    hashes = {Calibration.load(path.parents[1] / file).hash for file in files}
    assert len(files) == len(hashes) == 2


def test_cases_are_run_one_after_the_other(cli, tiny):
    cases = "cases=[['bits=8,4'],['bits=3','quant=affine']]"
    done = cli(*tiny, cases, "mode=int,float", "-m")
    assert done.code == 0, done.err
    assert "6 jobs: 1 training (0 stored), 6 quantized variants" in done.out
    assert set(rows()) == {"fp32", "W8 int", "W4 int", "W3 int affine", "W8 float", "W4 float", "W3 float affine"}
    assert cli(*tiny, cases, "bits=2", "-m").code == 0  # what is typed wins
    assert {"W2 int", "W2 int affine"} < set(rows())
    alone = cli(*tiny, cases)
    assert alone.code == 2 and "add -m" in alone.err


def test_rescaled_channels_are_the_same_network_until_it_is_rounded(cli, tiny):
    grid = ("quant=symmetric_restricted", "correct.fold_bn=true", "correct.rescale_log10=2")
    model = ("model=resnet8", "model.factory=null", "data.num_train=64", "evaluate.num_images=50")  # `tiny` has no pairs
    done = cli(*tiny, *model, *grid, "cases=[['mode=float'],['correct.rescale_seed=0,1'],['correct.equalize=true']]", "-m")
    assert done.code == 0, done.err
    sqnr = {name: float(row["logit_sqnr_db"]) for name, row in rows().items() if row["logit_sqnr_db"]}
    grid = "W8 int symmetric_restricted fold_bn rescale_2"
    scaled, other, equalized = (sqnr[f"{grid}{end}"] for end in ("", "_seed1", " equalize"))
    assert sqnr["W8 float symmetric_restricted fold_bn rescale_2"] > 80 and scaled < equalized - 5 and scaled != other


def test_batch_norm_does_not_tell_the_range_of_a_rescaled_channel(cli, tiny):
    done = cli(*tiny, "correct.fold_bn=true", "correct.rescale_log10=1", "calibrate=bn")
    assert done.code == 2 and "calibrate=bn: allowed is another method with correct.rescale_log10" in done.err


@pytest.fixture
def first_normed():
    """A network whose first batch norm reads the images, which no layer makes; `make_both` has another behind a layer."""
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels, behind=False):\n"
        "    layers = nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, 8, 3, 2), *[nn.BatchNorm2d(8)] * behind, nn.ReLU()\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
        "def make_both(num_classes, in_channels):\n"
        "    return make(num_classes, in_channels, behind=True)\n"
    )
    return "model.factory=net.py:make"


def journal_rows(kind):
    (path,) = Path("runs/journal").glob("*.jsonl")
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == kind]


UNFOLDED = "batch norms: not folded, its input is not the output of a convolution or linear layer (0)"


def test_what_a_correction_did_in_part_is_an_alarm(cli, tiny, first_normed):
    options = (*tiny, f"{first_normed}_both", "correct.fold_bn=true", "bits=8")
    done = cli(*options)
    assert done.code == 0, done.err
    row = rows()["W8 int fold_bn"]
    assert row["alarms"] == f"fold_bn folded 1 of 2 {UNFOLDED}" and row["corrections"] == "fold_bn (1 of 2)"
    (checkpoint,) = Path("runs/trainings").glob("*/epochs/0001.safetensors")
    profile = cli(*options, "task=profile", f"checkpoint={checkpoint}", verb="analyze")
    assert profile.code == 0 and profile.out.count(f"ALARM: fold_bn folded 1 of 2 {UNFOLDED}") == 1, profile.err


def test_weights_that_hooks_make_are_quantized_and_folded(cli, tiny):
    """Two bits change them, sixteen bits behind a folded batch norm do not; the training keeps the hooks."""
    hooked = [word.replace(":tiny", ":normed") for word in tiny]
    done = cli(*hooked, "quant=symmetric_restricted", "bits=2,16", "correct.fold_bn=true", "-m")
    assert done.code == 0, done.err
    sqnr = {name.split()[0]: float(row["logit_sqnr_db"]) for name, row in rows().items() if name != "fp32"}
    assert sqnr["W2"] < 20 and sqnr["W16"] > 60
    assert "made permanent what hooks or parametrizations make: 0.weight, 5.weight" in done.out
    assert "0.weight_orig" in load_file(next(Path("runs/trainings").glob("*/epochs/0001.safetensors")))
    refused = cli(*hooked, "qat=lsq", "bits=4")
    assert refused.code == 2 and "qat=lsq: allowed is none for this network" in refused.err


def test_a_weight_under_two_names_is_rounded_once_whatever_else_is_done(cli, tiny):
    """At 16-bit activations the numbers are those of the weights alone, which the shadow rounds in its own way."""
    ways = ("bits=6", "quant.activation.bits=16", "calibrate.weights=mse", "correct.bias=empirical", "correct.adaround=true")
    tied = [word.replace(":tiny", ":tied") for word in tiny]
    cases = ",".join(f"['{way}']" for way in ways)
    done = cli(*tied, "quant=symmetric_restricted", "bits=6", "correct.adaround_iterations=20", f"cases=[{cases}]", "-m")
    assert done.code == 0, done.err
    weights, both, *corrected = [float(row["logit_sqnr_db"]) for name, row in rows().items() if name != "fp32"]
    assert weights == pytest.approx(both, abs=0.3) and len(corrected) == 3 and min(weights, *corrected) > 10
    assert "another layer has the same weight" in done.out and "it is called 3 times" in done.out


def test_a_correction_that_did_nothing_names_no_number(cli, tiny, first_normed):
    command = (*tiny, first_normed, "bits=8,4", "correct.fold_bn=true,false", "-m")
    done = cli(*command)
    assert done.code == 0, done.err
    unfolded = {row["bits"]: row["variant"] for row in journal_rows("record") if row.get("corrected")}
    keys = {row["bits"]: row["variant_key"] for row in journal_rows("record") if row.get("corrected")}
    assert unfolded == {8: f"W8 int {keys[8][:4]}", 4: f"W4 int {keys[4][:4]}"}
    assert set(rows()) == {"fp32", "W8 int", "W4 int", *unfolded.values()}
    for bits, name in unfolded.items():
        row, plain = rows()[name], rows()[f"W{bits} int"]
        assert f"fold_bn folded 0 of 1 {UNFOLDED}" in row["alarms"] and row["corrections"] == ""
        assert row["loss"] == plain["loss"] and not plain["alarms"]
    with open("results/digits/jobs.csv") as handle:
        assert [row["variant"] for row in csv.DictReader(handle)] == [unfolded[8], "W8 int", unfolded[4], "W4 int"]
    assert "nothing to do" in cli(*command).out
    names = {row["run"]: row["name"] for row in journal_rows("run")}  # the last that each was opened by
    assert set(rows()) - {"fp32"} < set(names.values()) and len(names) == len(rows())  # and so MLflow calls them


def test_a_stored_number_that_does_not_say_what_was_done_is_measured_again(cli, tiny, first_normed):
    command = (*tiny, first_normed, "bits=8", "correct.fold_bn=true")
    assert cli(*command).code == 0
    (path,) = [path for path in Path("runs/trainings").glob("*/variants/*.jsonl") if "corrected" in path.read_text()]
    row = json.loads(path.read_text())
    before = {key: value for key, value in row.items() if key != "corrected"} | {"alarms": [], "variant": "W8 int fold_bn"}
    path.write_text(json.dumps(before) + "\n")
    assert cli(*command).code == 0
    again = json.loads(path.read_text().splitlines()[-1])
    assert {**again, "time_ms": 0} == {**row, "time_ms": 0} and "fold_bn" not in again["variant"]
