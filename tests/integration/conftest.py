"""Real processes, as a user starts them."""

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m <arguments>` in the working directory, warnings as usual."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="session")
def process():
    return run_process


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def warm():
    """Starts commands in processes that need not import torch first: see warm.py."""
    spec = importlib.util.spec_from_file_location("warm", Path(__file__).with_name("warm.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.Warm()
    yield server
    server.close()


@pytest.fixture(scope="session")
def ranks(warm):
    """Starts the processes of one command, with the environment that torchrun gives them."""

    def start(count, *arguments, **environment):
        if count == 1:
            return [warm.start(*arguments, **environment)]
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [warm.start(*arguments, **environment, **shared, RANK=str(k), LOCAL_RANK=str(k)) for k in range(count)]

    return start


def all_numbers(runs):
    """Whatever a training has left behind, without times: its curve, every measurement, the bytes of weights and predictions."""
    (folder,) = Path(runs, "trainings").iterdir()
    rows = [json.loads(line) for path in sorted(folder.glob("variants/*.jsonl")) for line in path.read_text().splitlines()]
    kept = ("prec1", "prec5", "loss", "kl", "digest", "predictions")
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return {
        "curve": [(line["epoch"], line["train_loss"], line["train_prec1"], line["lr"]) for line in log],
        "measured": {(row["variant_key"], row["epoch"]): [row[key] for key in kept] for row in rows},
        "files": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.safetensors"))
        },
    }


@pytest.fixture(scope="session")
def numbers():
    return all_numbers
