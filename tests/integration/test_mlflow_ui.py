"""`qexp.ui mlflow=true` over a real store: its address answers, Ctrl-C ends it, and nothing of it is left."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from qexp.tracking.mlflow_store import open_store, store_uri
from qexp.tracking.server import experiment_page, runs_page

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("signum", "manner"), [(signal.SIGINT, []), (signal.SIGTERM, ["--json"])])
def test_it_serves_until_it_is_ended(tracked_here, port, signum, manner):
    store = open_store(store_uri(None, "runs"), runs_dir="runs", experiment="mine")
    command = [sys.executable, "-m", "qexp.ui", "mlflow=true", "name=mine", f"port={port}", "open=false", *manner]
    with open("log", "wb") as log:
        shell = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    lines = iter(shell.stdout.readline, "")
    if manner:
        address = json.loads(next(lines))["address"]
    else:
        address = next((line for line in lines if line.startswith("http://")), "").split("   ")[0]
    assert address == f"http://127.0.0.1:{port}{runs_page(store.experiment_id, 'CHART')}"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert answer.status == 200
    shell.send_signal(signum)
    rest, _ = shell.communicate()
    assert shell.returncode == (0 if signum == signal.SIGINT else 128 + signum)
    with open("log", encoding="utf-8") as log:
        assert "Traceback" not in log.read()
    if manner:
        assert [json.loads(line)["event"] for line in rest.splitlines()] == ["error"], "the server's own log is elsewhere"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_without_a_name_it_opens_what_ran_last(tracked_here):
    stores = [open_store(store_uri(None, "runs"), runs_dir="runs", experiment=name) for name in ("first", "last", "empty")]
    assert experiment_page(store_uri(None, "runs"), None) == ""
    for store, began in zip(stores, (1_000, 2_000), strict=False):
        store.client.create_run(store.experiment_id, start_time=began)
    assert experiment_page(store_uri(None, "runs"), None) == runs_page(stores[1].experiment_id, "CHART")


def test_an_experiment_that_the_store_lacks(tracked_here, process):
    open_store(store_uri(None, "runs"), runs_dir="runs", experiment="mine")
    done = process("qexp.ui", "mlflow=true", "name=mien", "open=false")
    assert done.returncode == 2 and "Did you mean mine?" in done.stderr and not done.stdout
