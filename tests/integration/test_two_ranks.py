"""The same commands under torchrun and torch.distributed.launch, two processes on the CPU."""

import csv
import json
import time
from pathlib import Path

import pytest
import torch

LAUNCH = ("torch.distributed.launch", "--use-env", "--nproc_per_node=2")
RUN = ("torch.distributed.run", "--nproc_per_node=2")


def rows(name="digits"):
    with open(f"results/{name}/table.csv") as handle:
        return list(csv.DictReader(handle))


def digests(folder):
    found = [json.loads(path.read_text().splitlines()[-1]) for path in Path(folder).rglob("variants/*.jsonl")]
    kept = ("digest", "prec1", "prec5", "loss", "kl", "n")
    return {(row["training"], row["variant"]): [row[key] for key in kept] for row in found}


def test_a_sweep_over_two_trainings_and_the_evaluation_of_one(process, cli, tiny, port):
    sweep = (*tiny, "train.lr=0.05,0.01", "bits=4,8", "-m")
    done = process(*LAUNCH, f"--master_port={port}", "-m", "qexp.train", *sweep)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 jobs: 2 trainings (0 stored), 4 quantized variants\n")
    assert done.stdout.count("tables and figures:") == 1
    assert len(list(Path("runs/jobs").iterdir())) == 1
    assert len(list(Path("runs/trainings").iterdir())) == 2
    table = rows()
    assert [row["variant"] for row in table] == ["fp32", "W8 int", "W4 int"] * 2
    assert {row["world_size"] for row in table} == {"2"} and {row["n"] for row in table} == {"360"}

    again = process(*RUN, f"--master_port={port}", "-m", "qexp.train", *sweep, "runs_dir=by_torchrun")
    assert again.returncode == 0, again.stderr
    assert len(list(Path("by_torchrun/jobs").iterdir())) == 1
    assert digests("by_torchrun/trainings") == digests("runs/trainings")

    alone = cli(*sweep)  # the same trainings, though done by two
    assert alone.code == 0 and "2 trainings (2 stored)" in alone.out

    file = next(Path("runs/trainings").glob("*/epochs/0001.safetensors"))
    prepared = ("quant=affine", "quant.activation.bits=null,8", "calibrate=mse", "calibrate.batch_size=16")
    corrected = ("correct.bias=none,empirical", "correct.fold_bn=true")
    options = ("bits=4", "mode=int,half", "evaluate.batch_size=100", "-m")
    evaluate = (*tiny, f"checkpoint={file}", *prepared, *corrected, *options)
    assert cli(*evaluate, "runs_dir=alone", verb="evaluate").code == 0
    both = process(*RUN, f"--master_port={port}", "-m", "qexp.evaluate", *evaluate, "runs_dir=both")
    assert both.returncode == 0, both.stderr
    assert digests("both") == digests("alone")
    assert len(digests("both")) == 6


NO_GPU = pytest.param(
    ["device=cuda"],
    "device=cuda: allowed is cpu here",
    marks=[pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")],
)


@pytest.mark.parametrize(
    "arguments, message", [(["bits=4,0", "-m"], "bits=0: allowed is an integer from 1 to 16 (job #1"), NO_GPU]
)
def test_bad_input_ends_both_ranks_at_once(process, tiny, port, arguments, message):
    begin = time.monotonic()
    done = process(*RUN, f"--master_port={port}", "-m", "qexp.train", *tiny, *arguments)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    assert "qexp/pipeline" not in done.stderr  # no traceback of ours
    assert not Path("runs/trainings").exists()
    assert time.monotonic() - begin < 120  # not one of the process group's timeouts
