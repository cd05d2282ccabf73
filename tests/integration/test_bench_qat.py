"""The benchmark of training steps runs, and refuses peers that do other work."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
OWN = {"float", "torch fake_quantize", "torch learnable", "qexp lsq, folded"}


def bench(*arguments):
    command = [sys.executable, SCRIPTS / "bench_qat.py", "device=cpu", "threads=1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_every_peer_of_ours_trains_and_quantizes_as_many_tensors(tmp_path):
    done = bench("networks=resnet20", "rounds=1", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("qat-*.csv")
    rows = {row["peer"]: row for row in csv.DictReader(path.read_text().splitlines())}
    assert rows.keys() >= OWN | {f"qexp {method}" for method in ("lsq", "ste", "pact", "dorefa", "lsq_plus")}
    assert {row["num_quantizations"] for name, row in rows.items() if name != "float"} == {"40"}  # 20 layers, 20 inputs
    assert float(rows["float"]["ratio_median"]) == 1
    assert all(row["n"] == "1" and row["torch"] and row["processor"] for row in rows.values())


@pytest.mark.slow
def test_unknown_options_are_refused():
    done = bench("round=1")
    assert done.returncode == 1 and "rounds=11" in done.stderr
    assert "one of no, yes, both, auto" in bench("compile=maybe", "networks=resnet20").stderr
