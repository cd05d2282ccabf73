"""Real processes, as a user starts them."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 900  # on whatever is waited for; reached only where something is wrong
SCREENSHOTS = Path(__file__).parents[2] / "scripts" / "screenshots.py"


def pytest_collection_modifyitems(items):
    """Processes that share their cores with other work take many times as long; each has its own limit, of LIMIT_S."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(2 * LIMIT_S))


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m <arguments>` in the working directory, warnings as usual."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=LIMIT_S
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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A SQLite store without runs, made once: making one takes seconds."""
    from qexp.tracking.mlflow_store import import_mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracked_here(empty_store):
    """The default store of the working directory, empty and ready."""
    Path("runs").mkdir()
    shutil.copy(empty_store, "runs/mlflow.db")


@pytest.fixture(scope="session")
def shots():
    """scripts/screenshots.py, which opens the same pages."""
    pytest.importorskip("playwright", reason="needs playwright: make dev")
    spec = importlib.util.spec_from_file_location("screenshots", SCREENSHOTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.find_browser() is None:
        pytest.skip("needs Chromium: apt install chromium, or CHROMIUM=FILE")
    return module
