"""Every conf/experiment/*.yaml: says what it is, composes, and runs a step at the size of a test."""

import csv
import re
from pathlib import Path

import pytest

EXPERIMENTS = sorted((Path(__file__).parents[1] / "conf" / "experiment").glob("*.yaml"))
SMALL = (
    "data=fake", "data.root=null", "data.download=false", "data.num_train=64", "data.num_test=32", "data.num_calib=8",
    "data.num_select=8",
    "data.image_size=16", "data.mean=[0.5]", "data.std=[0.2]", "model=resnet20", "model.weights=null", "train.epochs=1",
    "train.warmup_epochs=0",
    "train.batch_size=32", "train.precision=fp32", "evaluate.num_images=16", "device=cpu", "tracking.enabled=false",
)  # fmt: skip


def test_there_are_experiments():
    assert {"document_002", "document_002_small", "cifar10_jpeg"} <= {path.stem for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_it_opens_with_its_command_and_the_number_to_expect(path):
    first, command, *rest = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in rest if line.startswith("#")]
    assert first == "# @package _global_"
    assert re.match(rf"# (python|torchrun .*) ?-m qexp\.\w+ .*experiment={path.stem}\b", command), command
    expected = [line for line in comments if line.startswith("# Expect: ")]
    assert len(expected) == 1 and re.search(r"\d", expected[0])
    assert re.fullmatch(r"[a-z0-9_]+", path.stem)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_it_runs_a_step(path, cli):
    done = cli(f"experiment={path.stem}", *SMALL, "results_dir=results", "name=smoke")
    assert done.code == 0, done.err
    with open("results/smoke/table.csv") as handle:
        variants = [row["variant"] for row in csv.DictReader(handle)]
    text = path.read_text(encoding="utf-8")
    assert len(variants) >= 2 and variants[0] == "fp32"
    if "sweeper" in text:  # a sweeping one must say so: without hydra.mode its params run one job in silence
        assert "mode: MULTIRUN" in text and len(variants) > 2
    assert len(list(Path("runs/trainings").iterdir())) == 1
