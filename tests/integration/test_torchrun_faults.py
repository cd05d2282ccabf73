"""What happens to ranks that torchrun started: one fails alone, one is killed, all are told to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_S = 900  # on whatever is waited for; reached only where something is wrong


@pytest.fixture(scope="module")
def sweep(tiny):
    """Two trainings of two epochs (20 steps each), with dropout, and a copy of every epoch."""
    options = [text for text in tiny if not text.startswith("model.factory=")]
    (network,) = [text.replace(":tiny", ":Mortal") for text in tiny if text.startswith("model.factory=")]
    return (*options, network, "train.epochs=2", "train.checkpoint_every_steps=5", "deterministic=true", "bits=4")


@pytest.fixture
def torchrun(port):
    """Starts a sweep on two ranks."""

    def start(*arguments, restarts=0, **environment):
        launch = ("torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", f"--max-restarts={restarts}")
        return subprocess.Popen(
            [sys.executable, "-m", *launch, "-m", "qexp.train", *arguments],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def undisturbed(warm, sweep, numbers, tmp_path_factory, ranks):
    """What two ranks leave behind when nothing happens."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("undisturbed"))
    children = ranks(2, *sweep)
    assert [child.wait() for child in children] == [0, 0], children[0].text
    found = numbers("runs")
    os.chdir(before)
    return found


@pytest.mark.slow
def test_a_rank_that_fails_alone_ends_the_command_and_the_next_one_finishes(torchrun, sweep, numbers, undisturbed, ranks):
    failed = torchrun(*sweep, MORTAL_STEP="23", MORTAL_RANK="1", MORTAL_HOW="error")
    out, _ = failed.communicate(timeout=LIMIT_S)  # not the process group's half hour
    assert failed.returncode != 0
    assert "this rank has no disk" in out, out
    assert "rank 1: OSError" in out or "stopped by SIGTERM" in out, out  # torchrun may end rank 0 before it hears of the other
    assert not Path("results").exists()
    before = numbers("runs")
    assert {epoch for _, epoch in before["measured"]} == {1}
    assert before["measured"].items() <= undisturbed["measured"].items()  # no wrong number
    children = ranks(2, *sweep)
    assert [child.wait() for child in children] == [0, 0], children[0].text
    assert numbers("runs") == undisturbed


def test_torchrun_starts_a_killed_rank_again_and_it_goes_on(torchrun, sweep, numbers, undisturbed):
    again = torchrun(*sweep, restarts=1, MORTAL_STEP="28", MORTAL_RANK="1")
    out, _ = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, out
    assert "going on in epoch 2, after batch 5 of " in out
    assert numbers("runs") == undisturbed


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_ends_within_its_grace_period(torchrun, sweep, numbers, undisturbed, ranks):
    stopped = torchrun(*sweep, "train.epochs=40")
    try:
        while not list(Path("runs").glob("trainings/*/last.pt")):
            assert stopped.poll() is None, stopped.stdout.read()
            time.sleep(0.05)
        stopped.send_signal(signal.SIGTERM)
        out, _ = stopped.communicate(timeout=LIMIT_S)
    finally:
        stopped.kill()
    assert stopped.returncode != 0
    (folder,) = Path("runs/trainings").iterdir()
    assert "SIGTERM" in (folder / "PREEMPTED").read_text(), out
    children = ranks(2, *sweep, "train.epochs=40", MORTAL_STEP="6", MORTAL_HOW="SIGTERM")
    assert [child.wait() for child in children] == [143, 143]
    assert ": going on " in children[0].text
