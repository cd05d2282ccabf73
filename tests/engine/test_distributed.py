import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Rank -> what it found, beside the single process under `alone`."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bare = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    bare |= {"OMP_NUM_THREADS": "1"}
    several = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    places = [bare, *({**bare, **several, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))]
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", str(WORKER), str(out)], env=env, stderr=subprocess.PIPE, text=True)
        for env in places
    ]
    try:
        errors = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(errors)
    return {name: torch.load(out / f"{name}.pt", weights_only=True) for name in ("1.0", "2.0", "2.1")}


@pytest.mark.parametrize("name", ["plain", "accumulate", "hooks", "parametrized"])
def test_two_ranks_with_uneven_slices_train_as_one_process(results, name):
    alone, both = results["1.0"][name], results["2.0"][name]
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        torch.testing.assert_close(both["state"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "accumulate", "norm", "hooks", "parametrized"])
def test_ranks_end_with_the_same_state(results, name):
    first, second = results["2.0"][name], results["2.1"][name]
    assert all(torch.equal(value, second["state"][key]) for key, value in first["state"].items())
    assert all(value.isfinite().all() for value in first["state"].values())
    assert first["losses"] == second["losses"]
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize("name", ["plain", "norm"])
def test_evaluation_is_the_same_to_the_last_bit(results, name):
    alone, both = results["1.0"][name]["untrained"], results["2.1"][name]["untrained"]
    log_prob, expected = both.pop("log_prob"), alone.pop("log_prob")
    assert torch.equal(log_prob, expected)
    assert both == alone
    assert both["n"] == 50


def test_control_channel_carries_jobs_and_outcomes(results):
    for rank in ("2.0", "2.1"):
        assert results[rank]["received"] == "job"
        assert results[rank]["agreed"] == ["", "no disk"]
        assert results[rank]["agreed_later"] == ["", ""]
