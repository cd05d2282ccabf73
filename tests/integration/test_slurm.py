"""A sweep on a real Slurm: munged, slurmctld and slurmd on loopback, started here, preempt a training and queue it again."""

import contextlib
import csv
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
LIMIT_S = 900  # reached only where something is wrong

# At step 5 of its first life it waits until it is asked to stop.
PATIENT = """
import time
from pathlib import Path
from torch import nn
from qexp.base.preemption import requested

class Patient(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
        self.net(__import__("torch").zeros(1, in_channels, 8, 8))
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        if self.steps == 5 and not Path("reached").exists():
            Path("reached").touch()
            while not requested():
                time.sleep(0.05)
        return self.net(images)
"""

# One core: two jobs follow each other. A job of `high` takes the place of one of `low`, which is told so and has GraceTime left.
# A job that was queued again waits until the credentials of its first life have expired.
CONF = """
ClusterName=qexp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldDebug=info
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={limit} State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF State=UP
"""

pytestmark = [
    pytest.mark.skipif(
        any(shutil.which(name, path=PLACES) is None for name in (*DAEMONS, "sbatch")),
        reason="needs Slurm: apt install slurm-wlm munge",
    ),
]


def wait_for(condition, what):
    """Wait until a condition holds; what it gives."""
    deadline = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {what}"
        time.sleep(0.2)
    return value


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S).stdout


def job_fields(number):
    """What `scontrol` tells of a job, by name."""
    return dict(re.findall(r"(\w+)=(\S*)", said("scontrol", "show", "job", number)))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster of one node and one core, gone with the test; the folder with its logs."""
    folder = tmp_path / "slurm"
    for path in (folder, folder / "state", folder / "spool"):
        path.mkdir()
    host = socket.gethostname().partition(".")[0]
    conf = CONF.format(host=host, ports=free_ports(2), user=getpass.getuser(), folder=folder, limit=LIMIT_S)
    (folder / "slurm.conf").write_text(conf)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", PLACES)
    named = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")}
    named["key"] = f"--key-file={folder}/munge.key"
    commands = (
        ("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *named.values()),
        ("slurmctld", "-D", "-f", str(folder / "slurm.conf")),
        ("slurmd", "-D", "-f", str(folder / "slurm.conf"), "-N", host),
    )
    with contextlib.ExitStack() as stack:
        for command in commands:
            output = stack.enter_context(open(folder / f"{command[0]}.out", "w"))
            daemon = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(lambda daemon=daemon: (daemon.terminate(), daemon.wait(timeout=LIMIT_S)))
            if command[0] == "munged":
                wait_for((folder / "munge.socket").exists, "munged")
        wait_for(lambda: "idle" in said("sinfo", "--noheader", "--format=%T"), f"an idle node; logs in {folder}")
        stack.callback(lambda: wait_for(lambda: not said("squeue", "--noheader"), "jobs to end"))
        stack.callback(said, "scancel", f"--user={getpass.getuser()}")
        yield folder


def table():
    """What the sweep's table says of each row, but for times; the order is that in which jobs ended."""
    keys = ("seed", "variant", "epoch", "prec1", "prec5", "loss", "n", "state")
    with open("results/digits/table.csv") as handle:
        return sorted([row[key] for key in keys] for row in csv.DictReader(handle))


def numbers(runs):
    """(training, variant's key, epoch) -> what was measured."""
    rows = [json.loads(line) for path in Path(runs).rglob("variants/*.jsonl") for line in path.read_text().splitlines()]
    return {(row["training"], row["variant_key"], row["epoch"]): [row["loss"], row["digest"]] for row in rows}


def test_a_preempted_training_goes_on_and_the_table_is_that_of_a_local_sweep(cluster, cli, tiny):
    Path("patient.py").write_text(PATIENT)
    network = ["model.factory=patient.py:Patient" if text.startswith("model.factory=") else text for text in tiny]
    sweep = (*network, "bits=4,8", "seed=0,1", "deterministic=true", "-m")
    slurm = ("hydra.launcher.inner=submitit_slurm", "hydra.launcher.partition=low")
    command = [sys.executable, "-m", "qexp.train", *sweep, *slurm]
    leader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: Path("reached").exists() or leader.poll() is not None, "a training's fifth step")
        assert leader.poll() is None, leader.communicate()[0]
        first = said("squeue", "--noheader", "--format=%i", "--states=RUNNING").strip()
        said("sbatch", "--partition=high", "--output=high.out", "--wrap=date > high_ran")
        out, _ = leader.communicate(timeout=LIMIT_S)
    finally:
        leader.kill()
    assert leader.returncode == 0, out
    assert Path("high_ran").exists() and job_fields(first)["Restarts"] == "1"
    logs = {path.name: path.read_text() for path in Path("runs/jobs").rglob("*_0_log.out")}
    assert len(logs) == 2 and sum(text.count("Requeued job") for text in logs.values()) == 1
    assert "going on in epoch 1, after batch" in logs[f"{first}_0_log.out"]
    (cluster / "sweep.log").write_text(out + "\n".join(logs.values()))
    on_slurm, stored = table(), numbers("runs")
    shutil.rmtree("results")
    assert cli(*sweep, "runs_dir=alone").code == 0
    assert table() == on_slurm and {row[-1] for row in on_slurm} == {"done"} and len(on_slurm) == 6
    assert numbers("alone") == stored and len(stored) == 6
