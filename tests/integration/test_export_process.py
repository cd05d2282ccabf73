"""`python -m qexp.export` as a process, and its registered model served by MLflow to a real request."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

NETWORKS = Path(__file__).parents[1] / "networks.py"
JOB = (
    "data=digits",
    "model=custom",
    f"model.factory={NETWORKS}:tiny",
    "device=cpu",
    "checkpoint=checkpoint.pt",
)


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    torch.save(runpy.run_path(str(NETWORKS))["tiny"](10, 1).state_dict(), "checkpoint.pt")


@pytest.mark.slow
def test_the_command_measures_what_running_costs(process, checkpoint):
    done = process("qexp.export", *JOB, "export.repeats=3", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    with open("results/digits/cost.csv") as handle:
        lines = list(csv.DictReader(handle))
    assert [(row["network"], row["batch"]) for row in lines] == [(n, b) for n in ("fp32", "quantized") for b in ("1", "16")]
    assert all(0 < int(row["peak_bytes"]) < 2**30 for row in lines if row["batch"] == "16")
    assert all(text in done.stdout for text in ("integer", "pass", "images/s", "file: runs/exports/digits/"))


def test_a_mistake_leaves_nothing(warm, checkpoint):
    child = warm.start(*JOB, "quant=log2", verb="export")
    assert child.wait() == 2 and child.text.startswith("qexp: nothing was started.\n  quant=log2: allowed is affine")
    assert not list(Path().rglob("*.onnx")) and not Path("runs/journal").exists()


@pytest.mark.slow
def test_the_registered_model_answers_a_request(process, checkpoint, port):
    done = process("qexp.export", *JOB, "export.cost=false", "export.register=tiny")
    assert done.returncode == 0, done.stderr
    assert "to be registered in MLflow as tiny" in done.stdout
    (example,) = Path("runs/exports/digits").glob("*/example.npz")
    with np.load(example) as arrays:
        images, logits = arrays["images"], arrays["logits"]
    found = ask(port, {"inputs": {"images": images.tolist()}})
    assert np.allclose(found["predictions"]["logits"], logits, atol=1e-3)
    again = process("qexp.export", *JOB, "export.cost=false", "export.register=tiny")
    assert again.returncode == 0 and "was registered in MLflow as tiny" in again.stdout


def ask(port, question):
    """Serve version 1 on loopback, ask once it is up, and stop it."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{Path('runs/mlflow.db').resolve()}"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny/1", "--env-manager", "local"]
    with open("serve.log", "w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "-p", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 900
        while not answers(port):
            assert server.poll() is None and time.monotonic() < until, Path("serve.log").read_text()
            time.sleep(0.2)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(300)


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=60) as answer:
            return answer.status == 200
    except OSError:
        return False
