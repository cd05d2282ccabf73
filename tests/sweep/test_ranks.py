import json

import pytest

from qexp.base.errors import RankFailed
from qexp.sweep import ranks, run


class Channel:
    """The control channel of a leader with one follower that fails where it is told to."""

    def __init__(self, fails_at=None, messages=()):
        self.sent, self.fails_at, self.messages = {}, fails_at, list(messages)

    def send(self, number, text):
        self.sent[number] = json.loads(text)

    def receive(self, number):
        return json.dumps(self.messages[number - 1])

    def leave(self):
        self.sent["left"] = True

    def wait_until_left(self):
        self.waited = True

    def post(self, number, text):
        self.sent["posted"] = text

    def agree(self, number, ok, message=""):
        return ["" if ok else message, "no disk" if number == self.fails_at else ""]


@pytest.fixture
def lead(monkeypatch):
    def make(channel):
        monkeypatch.setattr(ranks, "_CHANNEL", channel)
        monkeypatch.setattr(ranks, "_NUMBER", 0)
        monkeypatch.setattr(ranks, "_BROKEN", False)
        return channel

    return make


def fail():
    raise ValueError("mine")


def test_a_single_process_just_runs(sweep):
    done = []
    ranks.together([{}], sweep, lambda: done.append(1))
    assert done == [1]
    ranks.dismiss(0)


def test_jobs_are_numbered_and_the_dismissal_comes_last(lead, sweep):
    channel = lead(Channel())
    for k in range(2):
        ranks.together([{"bits": k}], sweep, lambda: None)
    ranks.dismiss(1)
    assert [channel.sent[number].get("jobs") for number in (1, 2, 3)] == [[{"bits": 0}], [{"bits": 1}], None]
    assert channel.sent[1]["sweep"]["verb"] == "train"
    assert channel.sent[3] == {"exit": 1} and channel.waited


def test_a_rank_that_failed_stops_all(lead, sweep, capsys):
    lead(Channel(fails_at=1))
    with pytest.raises(RankFailed, match="rank 1: no disk"):
        ranks.together([{}], sweep, lambda: None)
    channel = lead(Channel())
    with pytest.raises(RankFailed, match="rank 0: ValueError: mine"):
        ranks.together([{}], sweep, fail)
    ranks.dismiss(1)
    assert not hasattr(channel, "waited")  # nobody is left to answer


def test_a_follower_runs_what_it_is_sent(monkeypatch, sweep):
    job = {"jobs": [{"bits": 4}], "sweep": vars(sweep)}
    monkeypatch.setattr(ranks, "_join", lambda device: Channel(messages=[job, job, {"exit": 3}]))
    seen = []
    monkeypatch.setattr(run, "run_group_here", lambda jobs, its_sweep: seen.append((jobs, its_sweep)))
    assert ranks.follow("cpu") == 3
    assert seen == [([{"bits": 4}], sweep)] * 2
