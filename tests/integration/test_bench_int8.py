"""The benchmark of integer files runs, each runtime's own quantizer beside qexp's, and says what it leaves out."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = ("networks=resnet20", "dynamic=", "batches=2", "size=32", "rounds=1", "forwards=1", "compiled=false", "threads=1")


def bench(*arguments, script="bench_int8.py"):
    command = [sys.executable, SCRIPTS / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_the_own_quantizer_is_a_peer_and_what_is_left_out_is_named(tmp_path):
    for library in ("onnxruntime", "ai_edge_litert"):
        pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")
    done = bench(*SMALL, "runtimes=onnxruntime,litert", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("int8-*.csv")
    rows = {row["peer"]: row for row in csv.DictReader(path.read_text().splitlines())}
    own = "onnxruntime own int8"
    has_own = importlib.util.find_spec("ai_edge_quantizer") is not None  # not in constraints.txt
    litert = ["litert fp32", "litert int8", *["litert own int8"][: int(has_own)]]
    assert list(rows) == ["torch eager", "onnxruntime fp32", "onnxruntime int8", own, *litert]
    assert [name for name, row in rows.items() if row["over_own_median"]] == [
        "onnxruntime int8",
        *["litert int8"][: int(has_own)],
    ]
    ratio = float(rows["onnxruntime int8"]["speedup_median"]) / float(rows[own]["speedup_median"])
    assert float(rows["onnxruntime int8"]["over_own_median"]) == pytest.approx(ratio, rel=1e-2)  # of one round
    assert float(rows[own]["sqnr_db"]) > 1 and all(row["litert"] and row["processor"] for row in rows.values())
    assert ("resnet20: litert own int8 is left out: ai_edge_quantizer is not installed" in done.stdout) is not has_own
    assert "of 1 int8 peers have at least 0.95 of the own quantizer's speedup" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", ["bench_int8.py", "bench_sweep.py", "bench_train.py"])
def test_unknown_clocks_are_refused(script):
    assert "clock=sun: one of wall, cpu" in bench("clock=sun", script=script).stderr
