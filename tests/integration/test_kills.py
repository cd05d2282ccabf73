"""Commands that are killed between two system calls, again and again: in the end they say what an undisturbed one says."""

import csv
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from qexp.base.faults import VARIABLE

pytestmark = pytest.mark.slow
COLUMNS_OF_TIME = ("time_ms", "sweep", "seconds", "images_per_s")
NETWORK = Path(__file__).with_name("traceable.py")
PLAIN = ("file.written", "journal.torn", "journal.written:2", "file.renamed:4")
ANALYSES = ("journal.torn:2", "journal.written:3", "file.written", "file.renamed:4")
FILES = ("file.written", "file.written:3", "file.renamed:6")
TRAINS = ("epoch.weights", "state.rotated", "journal.torn:4", "file.written:9", "epoch.log:2")
FEW = ("data.num_select=100", "analyze.proxy_images=8", "analyze.probes=2", "analyze.widths=[2,3]", "quant=affine")
# What is asked -> verb, overrides, where it is killed. A number counts the passages of one process: what is stored is not written
# again, so that each kill falls later than the one before.
COMMANDS = {
    "evaluate": ("evaluate", ("quant=affine", "bits=3,8", "-m"), PLAIN),
    "sensitivity": ("analyze", ("task=sensitivity", *FEW), ANALYSES),
    "allocate": ("analyze", ("task=allocate", "analyze.average_bits=2.5", *FEW), ANALYSES),
    "profile": (
        "analyze",
        ("task=profile", "quant=affine"),
        ("file.written", "file.renamed", "file.written:2", "file.renamed:2"),
    ),
    "export": ("export", ("bits=8", "export.cost=false", "export.num_compared=50"), PLAIN),
    "qat": (
        "train",
        ("qat=lsq,ste", "bits=3", "qat.epochs=1", "train.checkpoint_every_steps=3", "deterministic=true", "-m"),
        TRAINS,
    ),
    "report": ("report", (), FILES),
}


def tables():
    """The rows of every CSV of the results, without times and names of sweeps."""
    rows = {}
    for path in sorted(Path("results").rglob("*.csv")):
        with open(path) as handle:
            rows[str(path)] = [{k: v for k, v in row.items() if k not in COLUMNS_OF_TIME} for row in csv.DictReader(handle)]
    return rows


@pytest.fixture
def start(warm, tiny, network, tmp_path):
    """Starts the command of a kind in the working folder, to be killed at a fault or not at all; returns its exit code."""
    torch.save(network.state_dict(), tmp_path / "net.pt")

    def run(kind, fault=""):
        verb, words, _ = COMMANDS[kind]
        if kind == "qat":
            job = (*(word for word in tiny if not word.startswith("model.factory=")), f"model.factory={NETWORK}:Traceable")
            job += ("train.batch_size=360",)
        else:
            job = ("name=digits",) if verb == "report" else (*tiny, f"checkpoint={tmp_path / 'net.pt'}")
        child = warm.start(*job, *words, verb=verb, **{VARIABLE: fault})
        code = child.wait()
        assert code in (0, -signal.SIGKILL) and (fault or code == 0), child.text
        return code

    return run


@pytest.mark.parametrize("kind", COMMANDS)
def test_killed_commands_end_in_the_same_tables(start, kind, warm, tiny, tmp_path):
    if kind == "export":
        pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'qexp[deploy]'")
    whole = tmp_path / "whole"
    whole.mkdir()
    if kind == "report":  # of a sweep that is done
        child = warm.start(*tiny, "bits=3,8", "-m")
        assert child.wait() == 0, child.text
        shutil.copytree("runs", whole / "runs")
        shutil.rmtree("results")
    kills = 0
    for fault in COMMANDS[kind][2]:
        if start(kind, fault) == 0:
            break
        kills += 1
    start(kind)
    assert kills >= 3
    killed = tables()
    assert killed and not list(Path("runs").rglob("*.tmp")), "nothing to compare, or a part of a file is left"
    os.chdir(whole)
    start(kind)
    assert killed == tables()
