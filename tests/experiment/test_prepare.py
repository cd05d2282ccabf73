from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qexp.base.errors import UserError, UserErrors
from qexp.experiment.prepare import Preparer
from qexp.sweep.check import check


def one(job, changes=None, verb="train"):
    return Preparer().prepare(check([job(changes)], verb))


def refused(job, changes, verb="train") -> str:
    with pytest.raises((UserError, UserErrors)) as raised:
        one(job, changes, verb)
    return str(raised.value)


@pytest.fixture
def network(tmp_path):
    """A file with a network of the user's own, to be written anew."""
    path = tmp_path / "mine.py"

    def write(bias="True"):
        body = f"nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, bias={bias}))"
        path.write_text(f"from torch import nn\n\ndef net(num_classes):\n    return {body}\n")
        return f"{path}:net"

    return write


def test_what_a_job_needs(prepared):
    found = prepared({"bits": 4}, {"bits": 8, "mode": "half"})
    assert [variant.label for variant in found.variants] == ["fp32", "W4 int", "half"]
    assert found.num_classes == 10
    assert found.folder == Path("runs/trainings") / found.training
    first, second = found.network().state_dict(), found.network().state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_jobs_share_is_loaded_once(prepared):
    assert prepared({"bits": 4}).bundle is prepared({"bits": 5}).bundle
    first, second = (prepared({"qat.name": name, "bits": 4}) for name in ("lsq", "ste"))
    assert first.start is second.start is not None and first.training != second.training


def test_a_changed_network_file_is_another_training(job, network):
    before = one(job, {"model.factory": network()}).training
    assert one(job, {"model.factory": network()}).training == before
    assert one(job, {"model.factory": network(bias="False")}).training != before


def test_other_weights_to_start_from_are_another_training(job, tmp_path, network):
    path, factory = tmp_path / "w.safetensors", network()
    found = []
    for scale in (1, 1, 2):
        save_file({"1.weight": scale * torch.ones(10, 64), "1.bias": torch.zeros(10)}, path)
        found.append(one(job, {"model.factory": factory, "model.weights": str(path)}).training)
    assert found[0] == found[1] != found[2]


def test_a_checkpoint_is_named_by_content(job, tmp_path, network):
    factory, state = network(), {"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}
    names = ("a.safetensors", "b.safetensors")
    for name in names:
        save_file(state, tmp_path / name)
    here, there = (one(job, {"model.factory": factory, "checkpoint": str(tmp_path / name)}, "evaluate") for name in names)
    assert here.training == there.training
    assert here.folder.parent.name == "checkpoints"
    assert torch.equal(here.network().state_dict()["1.weight"], state["1.weight"])
    assert (
        here.training
        != one(
            job, {"model.factory": factory, "checkpoint": str(tmp_path / "a.safetensors"), "data.num_test": 50}, "evaluate"
        ).training
    )


def test_a_constant_tensor_of_a_checkpoint_is_left_alone(job, tmp_path, network):
    """Before training a constant tensor is an initialization; in a checkpoint it stays."""
    save_file({"1.weight": torch.ones(10, 64), "1.bias": torch.randn(10)}, tmp_path / "w.safetensors")
    rules = [{"role": "any", "bits": 4}]
    changes = {"model.factory": network(), "policy.name": "rules", "policy.rules": rules}
    assert list(one(job, changes).variants[1].plan.quantized) == ["1.weight", "1.bias"]
    checkpoint = {**changes, "checkpoint": str(tmp_path / "w.safetensors")}
    assert list(one(job, checkpoint, "evaluate").variants[1].plan.quantized) == ["1.bias"]


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"policy.name": "rules", "policy.rules": [{"match": "nosuch"}]}, ["policy.rules", "nosuch"]),
        ({"train.precision": "fp16"}, ["train.precision=fp16", "fp32 or bf16 on the CPU"]),
        ({"train.precision": "O1"}, ["train.precision=O1"]),
        ({"model.num_classes": 3}, ["model.num_classes=3", "at least the data set's 10"]),
        ({"evaluate.split": "select", "data.num_select": 0}, ["evaluate.split=select", "data.num_select=N"]),
        ({"evaluate.num_images": 361}, ["evaluate.num_images=361", "at most 360"]),
        ({"model.factory": "nosuch.py:net"}, ["model.factory=nosuch.py:net", "a file that exists"]),
        ({"model.name": "resnet21", "model.factory": None}, ["model.name=resnet21", "Nearest: "]),
        ({"data.num_test": 1797}, ["data.num_test=1797"]),
        ({"quant.name": "symmetric", "bits": 1}, ["bits=1", "at least 2"]),
    ],
)  # fmt: skip
def test_what_only_shows_with_data_and_network(job, changes, parts):
    text = refused(job, changes)
    assert all(part in text for part in parts), text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(job):
    assert "device=cuda: allowed is cpu here" in refused(job, {"device": "cuda"})


def test_a_truncated_checkpoint(job, tmp_path, network):
    path = tmp_path / "cut.pt"
    torch.save({"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    text = refused(job, {"model.factory": network(), "checkpoint": str(path)}, "evaluate")
    assert text.startswith(f"checkpoint={path}: allowed is") and "truncated" in text


def test_a_checkpoint_of_another_network(job, tmp_path, network):
    save_file({"2.weight": torch.zeros(10, 64)}, tmp_path / "w.safetensors")
    text = refused(job, {"model.factory": network(), "checkpoint": str(tmp_path / "w.safetensors")}, "evaluate")
    assert "1.weight" in text and "2.weight" in text


def test_a_corrupt_image_is_found_before_anything_runs(job, tmp_path):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "set" / part / label
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (8, 8), (number * 90, 40, 200)).save(folder / f"{number}.png")
    broken = tmp_path / "set/train/dog/1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    data = {"data.name": "imagefolder", "data.root": str(tmp_path / "set"), "data.num_test": None, "data.num_calib": 0}
    text = refused(job, data | {"data.num_select": 0, "data.mean": None, "data.std": None})
    assert str(broken) in text


def test_mistakes_of_several_groups_are_reported_together(job):
    rules = {"policy.name": "rules", "policy.rules": [{"match": "nosuch"}]}
    changes = ({"bits": 4}, rules, {"train.precision": "fp16"}, {**rules, "train.lr": 0.5})
    with pytest.raises(UserErrors) as raised:
        Preparer().prepare_all([check([job(change)], "train") for change in changes])
    first, second = map(str, raised.value.errors)
    assert "nosuch" in first and "fp16" in second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qat.name": "lsq", "qat.batch_norm": "folded"}, "qat.batch_norm=folded: allowed is unfolded for this network"),
        ({"qat.name": "lsq", "qat.freeze_bn_epoch": 1}, "qat.freeze_bn_epoch=1: allowed is null for this network"),
        ({"qat.name": "lsq", "qat.reestimate_bn": True}, "qat.reestimate_bn=true: allowed is false for this network"),
        (
            {"calibrate.name": "bn", "quant.name": "affine", "quant.activation.bits": 8},
            "calibrate=bn: allowed is a method that reads images. Of the activations that are quantized none stands behind",
        ),
    ],
)
def test_what_batch_norms_are_asked_for_is_refused_without_them(job, network, changes, message):
    assert message in refused(job, {"model.factory": network(), **changes})


def test_folding_in_training_needs_a_batch_norm_behind_a_layer(job, tmp_path):
    path = tmp_path / "mine.py"
    layers = "nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, num_classes)"
    path.write_text(f"from torch import nn\n\ndef net(num_classes):\n    return nn.Sequential({layers})\n")
    message = refused(job, {"model.factory": f"{path}:net", "qat.name": "lsq", "qat.batch_norm": "folded"})
    assert "None of its batch norms can be folded: not folded, its input is not the output" in message
