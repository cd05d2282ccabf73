"""Four processes on one MLflow store in a real Postgres server, which is restarted while they write."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from qexp.config.tracking import TrackingSettings
from qexp.tracking.journal import Journal
from qexp.tracking.mlflow_store import open_store, store_uri
from qexp.tracking.sync import sync

NEWEST = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # where Debian has them, off the PATH
PROGRAMS = os.pathsep.join([os.environ.get("PATH", ""), *map(str, NEWEST)])
LIMIT_S = 900  # reached only where something is wrong
JOBS = (("one", "aa"), ("one", "bb"), ("one", "bb"), ("two", "cc"))  # two of them write the same runs

# Half of the rows, then what stdin says, then the others.
WRITER = """
import json, sys
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.journal import Journal
from qexp.config.tracking import TrackingSettings
uri, runs_dir, name, rows = *sys.argv[1:4], json.loads(sys.argv[4])
journal = Journal.of(runs_dir, name)
feed = MlflowFeed(journal, experiment=name, settings=TrackingSettings(uri=uri, timeout_s=120), runs_dir=runs_dir)
feed.start()
for number, row in enumerate(rows):
    if number == len(rows) // 2:
        print("half", flush=True)
        sys.stdin.readline()
    journal.append([row])
    feed.notify()
feed.close()
"""

pytestmark = [
    pytest.mark.skipif(shutil.which("initdb", path=PROGRAMS) is None, reason="needs Postgres: apt install postgresql"),
]


class Postgres:
    """A server on loopback over a folder of its own; as the user `postgres` where root runs the tests, which it refuses."""

    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        self.user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.geteuid() == 0 else ()
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        self.uri = f"postgresql+psycopg2://qexp@127.0.0.1:{port}/postgres"
        self.call("initdb", "--no-sync", "--auth=trust", "--username=qexp", "-D", self.data)

    def call(self, program, *words):
        command = [*self.user, shutil.which(program, path=PROGRAMS), *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr

    def ctl(self, *words):
        self.call("pg_ctl", "-D", self.data, "-l", self.folder / "server.log", "-o", self.options, "-w", "-t", LIMIT_S, *words)


@pytest.fixture
def postgres():
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary: make dev")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in a folder that is its user's alone
        server = Postgres(Path(folder))
        server.ctl("start")
        yield server
        server.ctl("stop", "-m", "immediate")


def runs_of(uri, runs_dir):
    """Experiment and run -> its status, parameters, and the points of all its metrics; a run that is there twice fails."""
    runs = {}
    for name in ("one", "two"):
        client = open_store(uri, runs_dir=runs_dir, experiment=name).client
        for run in client.search_runs([client.get_experiment_by_name(name).experiment_id]):
            key = name, run.data.tags["qexp.run"]
            assert key not in runs
            points = {
                metric: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
                for metric in run.data.metrics
            }
            runs[key] = run.info.status, run.data.params, points
    return runs


def test_four_writers_and_a_restart_lose_and_repeat_nothing(postgres, tmp_path, sweep):
    runs_dir, settings = tmp_path / "runs", TrackingSettings(uri=postgres.uri, timeout_s=120)
    for name in ("one", "two"):
        open_store(store_uri(postgres.uri, runs_dir), runs_dir=runs_dir, experiment=name)  # makes the tables
    writers = []
    for name, training in JOBS:
        command = [sys.executable, "-c", WRITER, postgres.uri, str(runs_dir), name, json.dumps(sweep(training=training))]
        writers.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    assert [writer.stdout.readline() for writer in writers] == ["half\n"] * 4
    deadline = time.monotonic() + LIMIT_S
    while not (before := runs_of(postgres.uri, runs_dir)):
        assert time.monotonic() < deadline, "no run in the store"
        time.sleep(0.2)
    postgres.ctl("restart", "-m", "immediate")  # as a crash: connections break, and the log is replayed
    for writer in writers:
        complaints = writer.communicate("on\n", timeout=LIMIT_S)[1]
        assert writer.returncode == 0 and "Traceback" not in complaints, complaints
    for _ in range(2):  # what the restart kept from them, and then nothing
        for name in ("one", "two"):
            sync(name, runs_dir, settings)
    after, local = runs_of(postgres.uri, runs_dir), tmp_path / "local"
    assert before.keys() <= after.keys() and len(after) == 9 and {status for status, *_ in after.values()} == {"FINISHED"}
    for name in ("one", "two"):
        Journal.of(local, name).append(Journal.of(runs_dir, name).rows())
        sync(name, local, TrackingSettings(timeout_s=120))
    assert runs_of(store_uri(None, local), local) == after
    assert sum(len(points) for _, _, metrics in after.values() for points in metrics.values()) > 100
    print((postgres.folder / "server.log").read_text())
