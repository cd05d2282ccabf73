"""`python -m qexp.analyze task=profile` from the command line to its files, on a network of a few hundred weights."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from qexp.base.text import file_name
from qexp.nn.fold import fold_batch_norm
from qexp.quant.affine import fake_quantize_affine
from qexp.quant.qparams import choose_qparams


@pytest.fixture
def profile(cli, tiny, network):
    """Run the command on the network's checkpoint."""
    torch.save(network.state_dict(), "checkpoint.pt")
    return lambda *overrides: cli("task=profile", "checkpoint=checkpoint.pt", *tiny, *overrides, verb="analyze")


def rows(label, file="tensors.csv"):
    with open(Path("results/digits/profile") / label / file) as handle:
        return {row["name"]: row for row in csv.DictReader(handle)}


def test_weights_against_their_definition(profile, network):
    done = profile("bits=3", "quant=affine")
    assert done.code == 0, done.err
    tensors = rows("W3_int_affine")
    assert list(tensors) == ["0.weight", "5.weight"]
    total = 0.0
    for name, row in tensors.items():
        weight = network.state_dict()[name]
        copy = fake_quantize_affine(weight, choose_qparams(weight.min(), weight.max(), 3))
        loss = (weight - copy).double().square().sum()
        total += float(loss)
        assert float(row["loss"]) == pytest.approx(float(loss), rel=1e-5)
        assert float(row["sqnr_db"]) == pytest.approx(float(10 * (weight.double().square().sum() / loss).log10()), abs=1e-4)
        assert float(row["saturation"]) == 0.0
    assert f"total quantization loss {total:.4g}" in done.out
    assert sum(float(row["size_share"]) for row in tensors.values()) < 1


def test_activations_corrections_and_scores(profile, network, job, preparer):
    Image.new("L", (20, 30), 128).save("picture.png")
    done = profile(
        "bits=4", "quant=affine", "quant.activation.bits=4", "calibrate=percentile", "calibrate.percentile=99",
        "calibrate.num_images=50", "correct.fold_bn=true", "image=picture.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    label = "W4A4_int_affine_percentile_fold_bn_n50"
    tensors = rows(label)
    assert float(tensors["0.weight"]["maximum"]) == pytest.approx(
        float(fold_batch_norm(network).model[0].weight.detach().max()), rel=1e-6
    )
    assert tensors["input"]["role"] == "activation" and tensors["input"]["ranges"] == "percentile"
    saturations = [float(row["saturation"]) for row in tensors.values() if row["role"] == "activation"]
    assert 0 < max(saturations) < 0.1
    scores = rows(label, "scores.csv")
    pixel = torch.full((1, 1, 8, 8), 128 / 255)
    assert "class scores of picture.png" in done.out and len(scores) >= 5
    best = {row["rank_before"]: row for row in scores.values()}["1"]
    mean, std = bundle_statistics(job, preparer)
    expected = network((pixel - mean) / std)[0].softmax(0)
    assert float(best["before"]) == pytest.approx(float(expected.max().detach()), rel=1e-4)
    assert "50 calib images" in (Path("results/digits/profile") / label / "tensors.md").read_text()


def bundle_statistics(job, preparer):
    from qexp.sweep.check import check

    (config,) = check([job()], "train")
    bundle = preparer.data.of(config.data)
    return bundle.mean[0], bundle.std[0]


@pytest.mark.parametrize(
    ("changes", "label"),
    [(["mode=half"], "half"), (["mode=float", "bits=4"], "W4_float"), (["quant=linear_raw"], "W8_int_linear_raw")],
)
def test_copies_without_a_grid_or_without_rounding(profile, changes, label):
    done = profile(*changes)
    assert done.code == 0, done.err
    assert rows(label)["0.weight"]["sqnr_db"]


def test_plan_only_writes_nothing(profile):
    assert profile("plan_only=true").code == 0
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m"], "a single job for qexp.analyze"),
        (["bits=4,8", "-m"], "a single job for qexp.analyze"),
        (["hydra.mode=MULTIRUN"], "a single job for qexp.analyze"),
        (["task=profil"], "profile"),
        (["task=null"], "qexp.analyze needs task=TASK"),
        (["image=nowhere.png"], "image=nowhere.png: allowed is a file that exists"),
        (["image=checkpoint.pt"], "a readable image"),
        (["checkpoint=null"], "qexp.analyze needs checkpoint=FILE"),
    ],
)
def test_what_cannot_be_is_refused(profile, arguments, message):
    done = profile(*arguments)
    assert done.code == 2 and message in done.err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("verb", "argument"), [("train", "task=profile"), ("evaluate", "task=profile"), ("train", "image=a.png")]
)
def test_the_keys_belong_to_analyze(cli, tiny, verb, argument):
    done = cli(*tiny, argument, verb=verb)
    assert done.code == 2 and "It belongs to python -m qexp.analyze." in done.err


def test_it_runs_in_one_process(cli, tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = cli("task=profile", *tiny, verb="analyze")
    assert done.code == 2 and "one process" in done.err


def test_labels_become_names_of_folders():
    assert file_name("W4/8A8 int rules") == "W4-8A8_int_rules"
