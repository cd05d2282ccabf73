"""Trainings in workers: real processes of loky and real jobs of submitit's local executor. Slurm itself: test_slurm.py."""

import contextlib
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOBLIB = ("hydra.launcher.inner=joblib", "hydra.launcher.n_jobs=2", "-m")
LOCAL = ("hydra.launcher.inner=submitit_local",)

# `tiny`, which sends its process submitit's signal at training step 5 of its first life.
SIGNALLED = """
import os, signal
from pathlib import Path
from torch import nn

class Signalled(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
        self.net(__import__("torch").zeros(1, in_channels, 8, 8))
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        if self.steps == 5 and not Path("signalled").exists():
            Path("signalled").touch()
            os.kill(os.getpid(), signal.SIGUSR2)
        return self.net(images)
"""


def table(name="digits"):
    with open(f"results/{name}/table.csv") as handle:
        return list(csv.DictReader(handle))


def numbers(runs):
    """(training, variant's key, epoch) -> what was measured, without times."""
    rows = [json.loads(line) for path in Path(runs).rglob("variants/*.jsonl") for line in path.read_text().splitlines()]
    return {(row["training"], row["variant_key"], row["epoch"]): [row["loss"], row["digest"]] for row in rows}


def with_network(tiny, network):
    return [network if text.startswith("model.factory=") else text for text in tiny]


def logs(pattern="*.log"):
    return "\n".join(path.read_text() for path in sorted(Path("runs/jobs").rglob(pattern)))


def test_two_trainings_side_by_side_share_one_store(cli, tiny, tracked_here):
    sweep = (*tiny, "train.lr=0.05,0.01", "bits=4,8")
    done = cli(*sweep, *JOBLIB, "tracking.enabled=true")
    assert done.code == 0, done.err
    assert done.out.count("tables:") == 1 and "epoch 1  Prec@1" not in done.out
    assert logs().count("epoch 1  Prec@1") == 2
    assert sorted(row["state"] for row in table()) == ["done"] * 6
    store = sqlite3.connect("runs/mlflow.db")
    assert store.execute("select status, count(*) from runs group by status").fetchall() == [("FINISHED", 6)]
    assert cli(*sweep, "-m", "runs_dir=alone").code == 0
    assert numbers("runs") == numbers("alone") and len(numbers("runs")) == 6


@pytest.mark.slow
def test_a_worker_that_dies_takes_no_other_along(cli, tiny, monkeypatch):
    network = next(text for text in tiny if text.startswith("model.factory=")).replace(":tiny", ":Mortal")
    sweep = (*with_network(tiny, network), "train.epochs=1,2", "bits=4", "deterministic=true")
    monkeypatch.setenv("MORTAL_STEP", "25")  # of 20 and 40
    done = cli(*sweep, *JOBLIB)
    assert done.code == 1
    assert "1 of 2 trainings failed" in done.err and "its process ended" in done.err
    assert len(list(Path("runs/trainings").glob("*/traceback.txt"))) == 1
    assert {(row["epoch"], row["variant"]) for row in table()} >= {("1", "fp32"), ("1", "W4 int")}
    monkeypatch.delenv("MORTAL_STEP")
    again = cli(*sweep, "-m")
    assert again.code == 0, again.err
    assert {row["state"] for row in table()} == {"done"}


@pytest.mark.slow
def test_a_job_that_is_signalled_saves_and_is_queued_again(cli, tiny):
    Path("signalled.py").write_text(SIGNALLED)
    sweep = (*with_network(tiny, "model.factory=signalled.py:Signalled"), "bits=4", "deterministic=true", "-m")
    done = cli(*sweep, *LOCAL)
    assert done.code == 0, done.err
    assert "Requeued job" in logs("*_0_log.out") and "going on in epoch 1, after batch" in logs("*_0_log.out")
    assert [row["state"] for row in table()] == ["done", "done"]
    assert cli(*sweep, "runs_dir=alone").code == 0  # undisturbed, as the file is there
    assert numbers("runs") == numbers("alone") and len(numbers("runs")) == 2


@pytest.mark.slow
def test_the_tasks_of_a_job_are_its_ranks(cli, tiny):
    done = cli(*tiny, "bits=4,8", "-m", *LOCAL, "hydra.launcher.tasks_per_node=2")
    assert done.code == 0, done.err
    assert {(row["world_size"], row["n"], row["state"]) for row in table()} == {("2", "360", "done")}
    assert logs("*_1_log.out").count("epoch 1") == 0  # one rank speaks


@pytest.mark.slow
def test_sigterm_stops_the_workers_too(tiny):
    command = [sys.executable, "-m", "qexp.train", *tiny, "train.epochs=100000", "train.lr=0.05,0.01", "bits=4", *JOBLIB]
    leader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while leader.poll() is None and logs().count("epoch 2 ") < 2:
            time.sleep(0.2)
        leader.send_signal(signal.SIGTERM)
        out, err = leader.communicate(timeout=900)
    finally:
        leader.kill()
    assert leader.returncode == 143, err
    workers = [int(line.split("process ")[1].split(",")[0]) for line in out.splitlines() if "process " in line]
    assert len(workers) == 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    assert len(list(Path("runs/trainings").glob("*/PREEMPTED"))) == 2


@pytest.mark.slow
def test_workers_are_refused_under_torchrun(process, tiny, port):
    launch = ("torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "qexp.train")
    done = process(*launch, *tiny, "bits=4,8", *JOBLIB)
    assert done.returncode != 0
    assert done.stderr.count("hydra.launcher.inner=joblib: allowed is basic under torchrun") == 1
    assert "exitcode  : 2" in done.stderr
    assert not Path("runs/trainings").exists()


@pytest.mark.slow
def test_no_process_outlives_a_leader_that_is_killed(tiny):
    """Workers save and end, and what their libraries started ends with them; all of it is in one process group."""
    command = [sys.executable, "-m", "qexp.train", *tiny, "train.epochs=100000", "train.lr=0.05,0.01", "bits=4", *JOBLIB]
    with open("leader.log", "w") as log:
        leader = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while leader.poll() is None and logs().count("epoch 2 ") < 2:
            time.sleep(0.2)
        assert len(running(leader.pid)) > 2, Path("leader.log").read_text()
        leader.kill()
        leader.wait()
        while running(leader.pid):
            time.sleep(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
    assert len(list(Path("runs/trainings").glob("*/PREEMPTED"))) == 2


@pytest.mark.slow
def test_no_rank_outlives_a_torchrun_that_is_killed(tiny, port):
    launch = ("torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "qexp.train")
    command = [sys.executable, "-m", *launch, *tiny, "train.epochs=100000", "bits=4"]
    with open("agent.log", "w") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while agent.poll() is None and "epoch 2 " not in Path("agent.log").read_text():
            time.sleep(0.2)
        ranks = children(agent.pid)
        assert len(ranks) == 2
    finally:
        agent.kill()
        agent.wait()
    while any(map(is_running, ranks)):
        time.sleep(0.2)


def stat(pid):
    """State, parent and process group of a process; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1]), int(fields[2])


def is_running(pid):
    return (about := stat(pid)) is not None and about[0] not in "ZX"  # who is not waited for, has ended


def running(group):
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if is_running(pid) and (about := stat(pid)) is not None and about[2] == group]


def children(parent):
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if (about := stat(pid)) is not None and about[1] == parent]
