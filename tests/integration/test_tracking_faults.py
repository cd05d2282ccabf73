"""Trainings whose MLflow server is down, dies or hangs, and trainings that die: real servers, real processes, real signals."""

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from qexp import sync

GATED = Path(__file__).with_name("gated.py")
LIMIT_S = 900  # on whatever is waited for; reached only where something is wrong
METRICS = ("prec1", "prec5", "loss", "delta_prec1", "kl", "logit_sqnr_db")


def wait_for(what, found):
    """Until `found()` is true."""
    deadline = time.monotonic() + LIMIT_S
    while not found():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


class Server:
    """`mlflow server` over a SQLite file of its own, in a process group that can be killed, stopped and continued."""

    def __init__(self, folder, port, template):
        self.database, self.port, self.uri, self.process = folder / "server.db", port, f"http://127.0.0.1:{port}", None
        self.artifacts = folder / "artifacts"
        shutil.copy(template, self.database)

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--default-artifact-root", str(self.artifacts)]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = open(self.database.with_suffix(".log"), "ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_for("the server", self._answers)

    def _answers(self):
        assert self.process.poll() is None, self.database.with_suffix(".log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=60) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait(LIMIT_S)


@pytest.fixture
def server(tmp_path, port, empty_store):
    made = Server(tmp_path, port, empty_store)
    yield made
    made.kill()


class Held:
    """A training as a process of its own that stops in its second epoch."""

    def __init__(self, folder, warm, arguments):
        self.folder = folder / "gate"
        self.folder.mkdir()
        self.process = warm.start(*arguments, GATE=str(self.folder))
        wait_for("the gate", self._reached)

    def _reached(self):
        assert not self.process.ended(), self.process.text
        return (self.folder / "reached").exists()

    def go_on(self):
        """Open the gate; returns what was said once it has ended well."""
        (self.folder / "open").touch()
        code, said = self.process.wait(), self.process.text
        assert code == 0 and "Traceback" not in said, said
        return said

    def kill(self):
        if self.process.kill(signal.SIGKILL):
            self.process.wait()


@pytest.fixture
def held(tmp_path, warm):
    """Start a training that stops in its second epoch; what is still at work after the test is killed."""
    started = []

    def start(*arguments):
        started.append(Held(tmp_path, warm, arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def training(tiny):
    """Arguments of `qexp.train` on the gated network with tracking: 20 steps an epoch, one quantized variant."""
    kept = [text for text in tiny if not text.startswith(("model.factory=", "tracking."))]
    return [*kept, f"model.factory={GATED}:Gated", "bits=4"]


def journal(name="digits"):
    return [json.loads(line) for line in Path(f"runs/journal/{name}.jsonl").read_text().splitlines()]


def points_of(rows):
    """All points that the rows hold, sorted: (run, metric, step, value)."""
    found = set()
    for row in rows:
        if row["kind"] == "record":
            found |= {(row["run"], name, row["epoch"], row[name]) for name in METRICS if row[name] is not None}
        elif row["kind"] == "metrics":
            found |= {(row["run"], name, row["step"], value) for name, value in row["values"].items()}
    return sorted(found)


class Store:
    """What a store holds, read behind MLflow's back."""

    def __init__(self, database):
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=LIMIT_S) as connection:
            key = "join tags t on t.run_uuid = r.run_uuid and t.key = 'qexp.run'"
            self.runs = connection.execute(f"select t.value, r.status, r.run_uuid from runs r {key} order by 1").fetchall()
            points = f"select t.value, m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid {key}"
            self.points = sorted(connection.execute(points).fetchall())

    @property
    def status(self):
        return {run: status for run, status, _ in self.runs}


def assert_complete(database, *names):
    """Every run and every point of the journals is there, once."""
    rows = [row for name in names or ("digits",) for row in journal(name)]
    store = Store(database)
    assert [run for run, _, _ in store.runs] == sorted({row["run"] for row in rows if row["kind"] == "run"})
    assert store.points == points_of(rows)
    assert set(store.status.values()) == {"FINISHED"}


def sync_as_told(said, server, capsys):
    """Do what the training printed; the store is complete then, and still when it is done again. Returns what was printed."""
    (line,) = [line for line in said.splitlines() if "MLflow is behind" in line]
    command = shlex.split(line.partition("; ")[2].removesuffix(" sends them"))
    assert command == ["python", "-m", "qexp.sync", "name=digits", f"uri={server.uri}"]
    for answer in ("rows sent", "nothing was missing"):
        sync.run(sync.SyncSettings(**dict(text.split("=", 1) for text in command[3:])))
        assert answer in capsys.readouterr().out
        assert_complete(server.database)
    return line


def test_a_server_that_is_down_from_the_start(server, training, cli, warm, capsys):
    done = cli(*training, "train.epochs=2", f"tracking.uri={server.uri}")
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert {row["epoch"] for row in journal() if row["kind"] == "record"} == {1, 2}
    server.start()
    assert "server not reachable: Connection refused" in sync_as_told(done.out, server, capsys)
    Path("runs/journal/digits.mlflow.json").unlink()  # nobody knows how far it got: all is sent again
    again = warm.start(f"uri={server.uri}", verb="sync")
    assert again.wait() == 0 and again.text.startswith("digits: ") and len(again.text.splitlines()) == 1, again.text
    assert "rows sent" in again.text
    assert_complete(server.database)


@pytest.mark.slow
def test_a_server_that_is_killed_while_the_training_runs(server, training, held, capsys):
    server.start()
    one = held(*training, "train.epochs=3", f"tracking.uri={server.uri}")
    wait_for("the first epoch's points", lambda: Store(server.database).points == points_of(journal()) != [])
    assert set(Store(server.database).status.values()) == {"RUNNING"}
    server.kill()
    killed_ms = time.time_ns() // 1_000_000
    said = one.go_on()
    later = [row for row in journal() if row["kind"] == "record" and row["time_ms"] > killed_ms]
    assert {row["epoch"] for row in later} == {2, 3}  # trained and measured while nobody answered
    assert {step for _, _, step, _ in Store(server.database).points} == {1}
    server.start()
    sync_as_told(said, server, capsys)


@pytest.mark.slow
def test_a_server_that_hangs_at_the_end(server, training, held, capsys):
    """Requests that were given up are carried out when the server goes on, beside those of the sync."""
    server.start()
    one = held(*training, "train.epochs=2", f"tracking.uri={server.uri}", "tracking.timeout_s=30")
    wait_for("the first epoch's points", lambda: Store(server.database).points == points_of(journal()) != [])
    server.signal(signal.SIGSTOP)
    said = one.go_on()
    assert {row["epoch"] for row in journal() if row["kind"] == "record"} == {1, 2}
    server.signal(signal.SIGCONT)
    told = sync_as_told(said, server, capsys)
    assert "(no answer within 30 s)" in told or "timed out)" in told  # on a slow machine a request gives up first


def test_runs_of_a_killed_training_are_closed_and_then_reopened(training, held, cli, tracked_here):
    command = [*training, "train.epochs=2"]
    one = held(*command)
    wait_for("the first epoch's points", lambda: Store("runs/mlflow.db").points == points_of(journal()) != [])
    one.kill()
    before = Store("runs/mlflow.db")
    # The process that feeds MLflow may just be looking for runs of dead processes, and its own is one since.
    assert len(before.runs) == 2 and set(before.status.values()) <= {"RUNNING", "KILLED"}
    sync.run(sync.SyncSettings())
    assert Store("runs/mlflow.db").status == dict.fromkeys(before.status, "KILLED")
    again = cli(*command)
    assert again.code == 0 and "behind" not in again.out and "epoch 1/2" not in again.out, again.err
    assert_complete("runs/mlflow.db")
    assert [(run, run_id) for run, _, run_id in Store("runs/mlflow.db").runs] == [(run, run_id) for run, _, run_id in before.runs]


@pytest.mark.slow
def test_another_sweep_closes_the_runs_of_a_killed_one(training, held, process, tracked_here):
    one = held(*training, "train.epochs=2")
    wait_for("the runs", lambda: len(Store("runs/mlflow.db").runs) == 2)
    one.kill()
    other = process("qexp.train", *training, "seed=1", "name=another")
    assert other.returncode == 0 and "behind" not in other.stdout, other.stderr
    assert sorted(Store("runs/mlflow.db").status.values()) == ["FINISHED"] * 2 + ["KILLED"] * 2


@pytest.mark.slow
def test_four_trainings_at_once_on_a_store_that_does_not_exist(training):
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "qexp.train", *training, f"seed={seed}", "tracking.timeout_s=120"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    try:
        ended = [(*one.communicate(timeout=LIMIT_S), one.returncode) for one in started]
    finally:
        for one in started:
            one.kill()
    for out, err, code in ended:
        assert code == 0 and "behind" not in out and "Traceback" not in err, err
    assert len(Store("runs/mlflow.db").runs) == 8
    assert_complete("runs/mlflow.db")
