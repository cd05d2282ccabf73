"""The same commands under torchrun and torch.distributed.launch, two processes on the CPU."""

import csv
import json
from pathlib import Path

import pytest
import torch

from qexp.base.compiler import cxx_compiler

LAUNCH = ("torch.distributed.launch", "--use-env", "--nproc_per_node=2")
RUN = ("torch.distributed.run", "--nproc_per_node=2")


def rows(name="digits"):
    with open(f"results/{name}/table.csv") as handle:
        return list(csv.DictReader(handle))


def evaluation(tiny, *grid):
    """Arguments of `qexp.evaluate`: copies of an epoch that is stored in runs/, calibrated and corrected."""
    file = next(Path("runs/trainings").glob("*/epochs/0001.safetensors"))
    prepared = ("quant=affine", "calibrate=mse", "calibrate.batch_size=16", "correct.fold_bn=true", "bits=4")
    return (*tiny, f"checkpoint={file}", *prepared, "evaluate.batch_size=100", *grid, "-m")


WHOLE = ("quant.activation.bits=null,8", "correct.bias=none,empirical", "mode=int,half")
EACH = (
    "cases=[['mode=int,half'],['quant.activation.bits=8','correct.bias=empirical'],"
    "['correct.gptq=true'],['correct.gpfq=true'],['correct.qronos=true','correct.feedback_act_order=true']]"
)


def digests(folder):
    found = [json.loads(path.read_text().splitlines()[-1]) for path in Path(folder).rglob("variants/*.jsonl")]
    kept = ("digest", "prec1", "prec5", "loss", "kl", "n")
    return {(row["training"], row["variant"]): [row[key] for key in kept] for row in found}


@pytest.mark.slow
def test_the_launchers_agree_on_a_sweep_over_two_trainings(process, cli, tiny, port):
    sweep = (*tiny, "train.lr=0.05,0.01", "bits=4,8", "-m")
    done = process(*LAUNCH, f"--master_port={port}", "-m", "qexp.train", *sweep)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 jobs: 2 trainings (0 stored), 4 quantized variants\n")
    assert done.stdout.count("tables:") == 1
    assert len(list(Path("runs/trainings").iterdir())) == 2
    again = process(*RUN, f"--master_port={port}", "-m", "qexp.train", *sweep, "runs_dir=by_torchrun")
    assert again.returncode == 0, again.stderr
    assert digests("by_torchrun/trainings") == digests("runs/trainings")

    assert cli(*evaluation(tiny, *WHOLE), "runs_dir=alone", verb="evaluate").code == 0
    both = process(*RUN, f"--master_port={port}", "-m", "qexp.evaluate", *evaluation(tiny, *WHOLE), "runs_dir=both")
    assert both.returncode == 0, both.stderr
    assert digests("both") == digests("alone") and len(digests("both")) == 6


def test_a_sweep_over_two_trainings_and_the_evaluation_of_one(ranks, cli, tiny):
    sweep = (*tiny, "train.lr=0.05,0.01", "bits=4,8", "-m")
    done = ranks(2, *sweep)
    assert [child.wait() for child in done] == [0, 0], done[0].text
    assert done[0].text.startswith("4 jobs: 2 trainings (0 stored), 4 quantized variants\n")
    assert done[0].text.count("tables:") == 1 and "tables:" not in done[1].text
    assert len(list(Path("runs/trainings").iterdir())) == 2
    table = rows()
    assert [row["variant"] for row in table] == ["fp32", "W8 int", "W4 int"] * 2
    assert {row["world_size"] for row in table} == {"2"} and {row["n"] for row in table} == {"360"}

    alone = cli(*sweep)  # the same trainings, though done by two
    assert alone.code == 0 and "2 trainings (2 stored)" in alone.out

    assert cli(*evaluation(tiny, EACH), "runs_dir=alone", verb="evaluate").code == 0
    both = ranks(2, *evaluation(tiny, EACH), "runs_dir=both", verb="evaluate")
    assert [child.wait() for child in both] == [0, 0], both[0].text
    assert digests("both") == digests("alone")
    assert len(digests("both")) == 7


@pytest.mark.slow
@pytest.mark.skipif(cxx_compiler() is None, reason="a program needs a C++ compiler")
def test_two_ranks_run_the_programs_of_one(ranks, cli, tiny):
    assert cli(*tiny).code == 0
    compiled = evaluation(tiny, "quant.activation.bits=8", "evaluate.engine=compiled")
    assert cli(*compiled, "runs_dir=alone", verb="evaluate").code == 0
    both = ranks(2, *compiled, "runs_dir=both", verb="evaluate")
    assert [child.wait() for child in both] == [0, 0], both[0].text
    assert digests("both") == digests("alone") and len(digests("both")) == 2


def test_two_ranks_refuse_to_stop_an_evaluation(ranks, cli, tiny):
    assert cli(*tiny).code == 0
    stopped = evaluation(tiny, "quant.activation.bits=8", "evaluate.until=decided")
    codes, text = _ended(ranks(2, *stopped, "runs_dir=both", verb="evaluate"))
    assert codes[0] == 2 and 0 not in codes and text.count("allowed is null with several processes") == 1, text
    assert not Path("both").exists()


NO_GPU = pytest.param(
    ["device=cuda"],
    "device=cuda: allowed is cpu here",
    marks=[pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")],
)


@pytest.mark.parametrize(
    "arguments, message", [(["bits=4,0", "-m"], "bits=0: allowed is an integer from 1 to 16 (job #1"), NO_GPU]
)
@pytest.mark.slow
def test_bad_input_ends_both_ranks_at_once(process, tiny, port, arguments, message):
    done = process(*RUN, f"--master_port={port}", "-m", "qexp.train", *tiny, *arguments)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    assert "qexp/sweep" not in done.stderr  # no traceback of ours
    assert not Path("runs/trainings").exists()


def test_bad_input_is_said_by_one_rank_and_ends_both(ranks, tiny):
    children = ranks(2, *tiny, "bits=4,0", "-m")
    assert all(child.wait() not in (0, -9) for child in children)
    texts = "".join(child.text for child in children)
    assert texts.count("bits=0: allowed is an integer from 1 to 16 (job #1") == 1 and "qexp/sweep" not in texts
    assert not Path("runs/trainings").exists()


CHANGING = """
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.fc = nn.Linear(in_channels * 64, num_classes)

    def forward(self, images):
        return self.fc(images.flatten(1)) * float(Path("factor.txt").read_text())


def data():
    torch.seed()  # of the system's noise
    return {"train_images": torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8), "train_labels": torch.arange(64) % 4}
"""


def _ended(children):
    """Exit codes and all that was said."""
    codes = [child.wait() for child in children]
    return codes, "".join(child.text for child in children)


def test_numbers_of_another_network_end_both_ranks_with_2(ranks, tiny):
    Path("changing.py").write_text(CHANGING)
    Path("factor.txt").write_text("1")
    command = [*(text for text in tiny if not text.startswith("model.factory=")), "model.factory=changing.py:Net"]
    assert _ended(ranks(2, *command, "bits=4"))[0] == [0, 0]
    Path("factor.txt").write_text("-1")
    codes, text = _ended(ranks(2, *command, "bits=8"))
    assert codes == [2, 2] and text.count("New numbers would stand beside those of another network") == 1, text
    assert "Traceback" not in text


def test_a_factory_that_gives_other_data_each_time_is_told(ranks, tiny):
    Path("changing.py").write_text(CHANGING)
    command = [*(text for text in tiny if not text.startswith("data=")), "data=custom", "data.factory=changing.py:data"]
    codes, text = _ended(ranks(2, *command, "data.num_test=16", "data.num_calib=16", "data.num_select=0", "bits=4"))
    assert codes == [2, 2] and text.count("the factory gives other data each time") == 1, text
    assert "data.factory=changing.py:data: allowed is a function" in text and "Traceback" not in text
