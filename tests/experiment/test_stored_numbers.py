"""Stored numbers and new ones are of one network, or nothing new is written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qexp.base.types import Metrics
from qexp.engine.evaluate import Evaluation
from qexp.experiment.stored_numbers import as_stored, changed, circumstances

# What no hash covers: a file that the network reads.
NETWORK = """
from pathlib import Path
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
        self.scale = float(Path("scale.txt").read_text())

    def forward(self, images):
        return self.net(images) * self.scale
"""


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch):
    """Without tables and figures, which take most of a small command's time and are not looked at."""
    monkeypatch.setattr("qexp.sweep.run.report", lambda *arguments: [])


@pytest.fixture
def command(tiny):
    Path("scaled_net.py").write_text(NETWORK)
    Path("scale.txt").write_text("1")
    return (*(text for text in tiny if not text.startswith("model.factory=")), "model.factory=scaled_net.py:Net")


def rows(folder="runs"):
    return {str(path): path.read_text() for path in Path(folder).rglob("variants/*.jsonl")}


def test_a_float_network_that_scores_otherwise_stops_the_command(cli, command):
    assert cli(*command, "bits=4").code == 0
    before = rows()
    Path("scale.txt").write_text("1.00001")
    done = cli(*command, "bits=4,8", "-m")
    assert done.code == 2 and "training=" in done.err and "Epoch 1: Stored is Prec@1" in done.err
    assert "nothing was started" not in done.err and "Traceback" not in done.err
    assert rows() == before and not any("W8" in text for text in before.values())
    assert cli(*command, "bits=4,8", "-m", "fresh=true").code == 0


def test_weights_that_were_altered_stop_the_command(cli, command):
    assert cli(*command, "bits=4").code == 0
    (weights,) = Path("runs/trainings").rglob("epochs/0001.safetensors")
    save_file({name: 2 * value.flip(0) for name, value in load_file(weights).items()}, weights)
    done = cli(*command, "bits=8")
    assert done.code == 2 and "0001.safetensors was changed after it was written" in done.err and "Traceback" not in done.err
    for path in [*Path("runs").rglob("variants/*.jsonl"), weights.parent.parent / "train.jsonl"]:  # as older versions stored it
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in line.items() if key not in ("computed", "weights_hash")} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    done = cli(*command, "bits=8")
    assert done.code == 2 and "Stored is Prec@1" in done.err and not any("W8" in text for text in rows().values())


def test_what_is_trained_anew_is_said(cli, command):
    command = [text.replace("scaled_net.py:Net", "again.py:Net") for text in command]
    Path("again.py").write_text("from scaled_net import Net\n")
    assert "trained anew" not in cli(*command, "bits=4", "train.epochs=2").out
    assert "trained anew" not in cli(*command, "bits=4").out  # other settings are another training
    assert "trained anew" not in cli(*command, "bits=8").out  # the same one
    Path("again.py").write_text("from scaled_net import Net  # edited\n")
    done = cli(*command, "bits=4", "plan_only=true")
    assert done.out.count("note: stored training") == 1
    assert "has the same settings, but other source of the network" in done.out


def scored(prec1, loss, digest="b"):
    metrics = Metrics(prec1=prec1, prec5=100.0, loss=loss, n=1000)
    return Evaluation(metrics=metrics, predictions=None, digest=digest)


def test_rounding_is_no_change_where_it_may_be_another():
    now = circumstances("cpu", 100)
    stored = {"prec1": 90.0, "loss": 0.3, **as_stored(scored(90.0, 0.3, "a"), now)}
    assert changed(None, scored(1.0, 1.0), now) == changed(stored, scored(90.0, 0.3, "a"), now) == ""
    assert "Stored is Prec@1 90.00, loss 0.3000, now it has Prec@1 90.00" in changed(stored, scored(90.0, 0.3), now)
    elsewhere = now | {"cpu": "another", "batch_size": 7}
    assert changed(stored, scored(90.2, 0.301), elsewhere) == ""
    for other in (scored(90.2, 0.31), scored(91.0, 0.3), scored(90.0, float("nan"))):
        assert "Since then changed: cpu " in changed(stored, other, elsewhere)
    of_before = {key: value for key, value in stored.items() if key != "computed"}
    assert changed(of_before, scored(90.1, 0.3), now) == "" and changed(of_before, scored(50.0, 0.3), now)
    diverged = stored | {"loss": float("nan")}
    assert changed(diverged, scored(90.0, float("nan")), elsewhere) == ""
    on_gpu = now | {"device": "cuda"}
    assert changed(stored | {"computed": on_gpu}, scored(90.0, 0.3), on_gpu) == ""
    assert torch.get_num_threads() == now["threads"]
