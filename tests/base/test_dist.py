import threading

import pytest
import torch
import torch.distributed
from torch import nn

from qexp.base import dist
from qexp.base.control import ControlChannel


def test_a_single_process_needs_no_group():
    net = nn.BatchNorm1d(3)
    before = [value.clone() for value in net.state_dict().values()]
    dist.broadcast_state(net)
    dist.barrier()
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert (dist.rank(), dist.world_size(), dist.is_initialized()) == (0, 1, False)
    assert dist.all_gather_object({"a": 1}) == [{"a": 1}]
    assert all(dist.all_reduce(torch.tensor([2.0]), how).tolist() == [2.0] for how in ("SUM", "MIN", "MAX"))


def test_launched_needs_the_whole_environment(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert not dist.launched()
    monkeypatch.setenv("MASTER_PORT", "1")
    assert dist.launched()


@pytest.fixture
def channels():
    store = torch.distributed.HashStore()
    return [ControlChannel(store, rank, 2) for rank in range(2)]


def test_receive_waits_for_the_message(channels):
    sender = threading.Timer(0.2, channels[0].send, (3, "job three"))
    sender.start()
    assert channels[1].receive(3) == "job three"
    sender.join()


def test_only_rank_0_sends(channels):
    with pytest.raises(AssertionError):
        channels[1].send(0, "x")


def test_everybody_learns_all_outcomes(channels):
    outcomes = []
    second_rank = threading.Thread(target=lambda: outcomes.append(channels[1].agree(0, ok=False, message="diverged")))
    second_rank.start()
    assert channels[0].agree(0, ok=True) == ["", "diverged"]
    second_rank.join()
    assert outcomes == [["", "diverged"]]


def test_a_mistake_of_the_users_is_told_as_one(channels):
    second_rank = threading.Thread(target=lambda: channels[1].agree(0, ok=False, message="bits=0", mistake=True))
    second_rank.start()
    assert channels[0].agree(0, ok=True) == ["", "bits=0"] and channels[0].mistakes == {1}
    second_rank.join()


def test_silence_is_an_outcome(channels):
    assert channels[0].agree(0, ok=True, limit_s=0.1) == ["", "rank said nothing within 0 s"]
    assert channels[0].agree(1, ok=False, grace_s=0.1) == ["failed", "rank said nothing within 0 s"]
