"""Every conf/experiment/*.yaml: says what it is, composes, and runs a step at the size of a test."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from qexp.models.cifar_resnet import CifarResNet
from qexp.sweep.combinations import expand

EXPERIMENTS = sorted((Path(__file__).parents[1] / "conf" / "experiment").glob("*.yaml"))
PARSER = OverridesParser.create()
# As a file of values, since not every command reads all of them.
SMALL = """# @package _global_
data: {root: null, download: false, num_train: 64, num_test: 32, num_calib: 8, num_select: 8, image_size: 16,
  mean: [0.5], std: [0.2]}
model: {weights: null, pretrained: false}
train: {epochs: 1, warmup_epochs: 0, batch_size: 32, precision: fp32}
evaluate: {num_images: 16}
device: cpu
tracking: {enabled: false}
draw_figures: false
calibrate: {num_images: 8}
correct: {adaround_iterations: 20}
"""
NO_CUT = ("data.num_train=null", "data.num_test=null", "data.num_calib=0", "data.num_select=0")  # a tree to evaluate on alone


def test_there_are_experiments():
    studies = {"ptq_weights", "ptq_ranges", "rounding", "dfq_recovery", "bn_study", "input_bits"}
    assert {"document_002", "document_002_small", "cifar10_jpeg", *studies} <= {path.stem for path in EXPERIMENTS}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A ResNet-8 whose batch norms are not as new: none of its tensors is constant."""
    generator = torch.Generator().manual_seed(0)
    model = CifarResNet(8, num_classes=10, in_channels=3)
    with torch.no_grad():
        for values in (*model.parameters(), *(each for each in model.buffers() if each.is_floating_point())):
            values += 0.1 * torch.rand(values.shape, generator=generator)
    path = tmp_path_factory.mktemp("checkpoint") / "resnet8.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Files of other sizes than a network sees: of ten classes four to score and one to calibrate on."""
    generator, root = np.random.default_rng(0), tmp_path_factory.mktemp("tree")
    for part, count in (("test", 4), ("calib", 1)):
        for number in range(10 * count):
            path = root / part / f"class{number % 10}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return root


def thinned(cases, *, trains):
    """Of each case the first job and, where it trains nothing, the last, as one override."""
    of_cases = [expand(PARSER.parse_overrides(case)) for case in cases]
    jobs = [job for every in of_cases for job in (every[:1] if trains else (every[0], every[-1]))]
    return f"cases={json.dumps(jobs)}"


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
def test_it_runs_a_step(path, cli, checkpoint, tree):
    text = path.read_text(encoding="utf-8")
    verb, cases = re.search(r"-m qexp\.(\w+)", text)[1], yaml.safe_load(text).get("cases")
    own = [f"checkpoint={checkpoint}"] if verb in ("evaluate", "analyze", "export") else []
    own += ["export.runtime=onnxruntime"] if verb == "export" else []  # OpenVINO bears no other tests in its process
    own += ["analyze.probes=2", "analyze.widths=[2,4,8]"] if verb == "analyze" and "task: profile" not in text else []
    own += [f"model.weights={checkpoint}"] if "init: checkpoint" in text else []
    # What is typed comes after a case; draws are parts of the split.
    own += [f"calibrate.num_images={4 if 'calibrate.draw' in str(cases) else 8}"] if "calibrate.num_images" in str(cases) else []
    own += [thinned(cases, trains=verb == "train")] if cases else []
    Path("experiment").mkdir()
    Path("experiment/small.yaml").write_text(SMALL)
    data = ["data=imagefolder", f"data.root={tree}", *NO_CUT] if "data.crop" in str(cases) else ["data=fake"]
    chosen = ("--config-dir=.", f"experiment=[{path.stem},small]", *data, "model=resnet8")
    done = cli(*chosen, *own, "results_dir=results", "name=smoke", verb=verb)
    assert done.code == 0, done.err
    if "task: profile" in text:
        assert len(list(Path("results/smoke/profile").glob("*/tensors.csv"))) == 1
        return
    with open("results/smoke/table.csv") as handle:
        variants = [row["variant"] for row in csv.DictReader(handle)]
    assert len(variants) >= 2 and variants[0] == "fp32"
    if "sweeper" in text or cases:  # a sweeping one must say so: without hydra.mode its params run one job in silence
        assert "mode: MULTIRUN" in text and (len(variants) > 2 or len(cases) == 1)
    if verb == "train":
        num_trainings = len(list(Path("runs/trainings").iterdir()))
        assert num_trainings == 1 + sum(any(key.startswith("qat=lsq") for key in case) for case in cases or ())


STUDIES = [  # those of copies; three compare few
    path
    for path in EXPERIMENTS
    if re.search(r"qexp\.evaluate .*\n(.*\n)*cases:", path.read_text(encoding="utf-8"))
    and path.stem not in ("system_noise", "gptq_lite0", "schemes_lite")
]


@pytest.mark.slow  # hundreds of jobs are planned
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_all_jobs_of_a_study_are_valid_and_no_two_read_alike(path, cli, checkpoint):
    Path("experiment").mkdir()
    Path("experiment/small.yaml").write_text(
        SMALL.replace("num_calib: 8", "num_calib: 1024").replace("calibrate: {num_images: 8}", "")
    )
    chosen = ("--config-dir=.", f"experiment=[{path.stem},small]", "data=fake", "model=resnet8")
    done = cli(*chosen, f"checkpoint={checkpoint}", "plan_only=true", verb="evaluate")
    assert done.code == 0, done.err
    labels = re.findall(r"^\[([^\]]+)\] ", done.out, re.MULTILINE)
    assert len(labels) >= 20
    assert not [label for label in labels if re.search(r" [0-9a-f]{4}$", label)]  # the digits of a key tell alike ones apart
