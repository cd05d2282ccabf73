"""Real processes, as a user starts them."""

import os
import socket
import subprocess
import sys

import pytest


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m <arguments>` in the working directory, warnings as usual."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="session")
def process():
    return run_process


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
