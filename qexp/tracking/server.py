"""MLflow's UI over a store of SQLite, served while a command waits.

Rejected: starting its server in this process, whose own worker processes and signal handlers it would then share. It is a process
group of its own instead, which ends with the command, whichever way that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from qexp.base.errors import UserError, nearest
from qexp.tracking.mlflow_store import import_mlflow, store_uri

HOST = "127.0.0.1"
# Without the second MLflow starts eight processes that wait for jobs of its own, of which qexp has none.
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
LIMIT_S = 240.0  # MLflow starts within seconds, and within minutes beside other work
GRACE_S = 10.0  # to end, before it is killed
POLL_S = 0.2


def check_store(runs_dir: str | Path) -> str:
    """The URI of the store in `runs_dir`.

    Raises:
        UserError: there is none.
    """
    if not (Path(runs_dir) / "mlflow.db").is_file():
        remedy = "Run python -m qexp.train first; after tracking.enabled=false, python -m qexp.sync."
        raise UserError("runs_dir", runs_dir, allowed="a folder with MLflow's store, mlflow.db", remedy=remedy)
    return store_uri(None, runs_dir)


def check_port(port: int) -> None:
    """Raise UserError for a port that another program has, or that this user may not take."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was left a minute ago is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            remedy = (
                f"{error.strerror}: end the program that has it, or name another one, port={port + 1 if port < 65535 else 5000}."
            )
            raise UserError("port", port, allowed="a free port", remedy=remedy) from error


def experiment_page(uri: str, name: str | None) -> str:
    """The charts of an experiment, behind the address of the server; empty where the store has no run.

    Args:
        uri: of the store.
        name: of the experiment; None is that of the run which began last.

    Raises:
        UserError: the store has no such experiment.
    """
    client = import_mlflow().MlflowClient(tracking_uri=uri)
    if name is None:
        ids = [one.experiment_id for one in client.search_experiments()]
        latest = client.search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1)
        return runs_page(latest[0].info.experiment_id, "CHART") if latest else ""
    entity = client.get_experiment_by_name(name)
    if entity is None:
        known = [one.name for one in client.search_experiments()]
        raise UserError("name", name, allowed=f"an experiment of MLflow's store: {', '.join(known)}", remedy=nearest(name, known))
    return runs_page(entity.experiment_id, "CHART")


def runs_page(experiment: str, view: str) -> str:
    """The runs of an experiment, behind the address of the server.

    Ordered by a metric, trainings and variants stand side by side. In MLflow's own order, by time, variants are folded away below
    their training, and what is folded away is not drawn.

    Args:
        experiment: MLflow's number of it.
        view: `TABLE` or `CHART`.
    """
    return f"/#/experiments/{experiment}/runs?orderByKey=metrics.%60prec1%60&orderByAsc=false&compareRunsMode={view}"


class ServerFailed(RuntimeError):
    """MLflow's UI ended, or does not answer."""


@contextlib.contextmanager
def serving(uri: str, port: int, log: IO[bytes] | int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start the server; within, its address, where it answers, and its process. It is ended behind.

    Args:
        uri: of the store.
        port: that it takes on 127.0.0.1; no other machine reaches it.
        log: where it writes, a file or its descriptor; None is where this process writes.

    Raises:
        ServerFailed: it ended or does not answer.
    """
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--uvicorn-opts", "--log-level warning"]  # without a line for each request
    server = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"http://{HOST}:{port}/health", server)
        yield f"http://{HOST}:{port}", server
    finally:
        _end(server)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server answers."""
    end = time.monotonic() + LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise ServerFailed("mlflow ui does not answer; what it wrote says why") from None
            time.sleep(POLL_S)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server, and whatever workers it leaves."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
