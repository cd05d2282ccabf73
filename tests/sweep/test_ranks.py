import json

import pytest

from qexp.base.errors import RankFailed, UserError
from qexp.sweep import ranks
from qexp.sweep.check import check
from qexp.sweep.jobs import ask_for
from qexp.sweep.types import MergedJob


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

    def post(self, number, text, *, mistake=False):
        self.sent["posted"] = text, mistake

    def hears_of_mistake(self, number):
        return False

    def agree(self, number, ok, message="", *, mistake=False):
        self.mistakes = {0} if mistake else set()
        return ["" if ok else message, "no disk" if number == self.fails_at else ""]


@pytest.fixture
def merged(job, sweep):
    """Jobs that share a training, of a rule, a list and a number that is no integer among others."""
    rules = {"policy.name": "rules", "policy.rules": [{"match": "0.*", "bits": 4}]}
    jobs = [job({"bits": 4, "train.lr": 0.1}), job({"train.lr": 0.1, "data.mean": [0.5], **rules})]
    return MergedJob(tuple(check(jobs, "train")), tuple(ask_for(jobs)), sweep)


@pytest.fixture
def lead(monkeypatch):
    def make(channel):
        monkeypatch.setattr(ranks, "_join", lambda device: channel)
        return ranks.Leader("cpu")

    return make


def fail():
    raise ValueError("mine")


def test_a_job_arrives_as_it_was_sent(merged):
    assert MergedJob.from_json(merged.to_json()) == merged


def test_a_single_process_just_runs(merged):
    done = []
    ranks.Alone().run_on_all(merged, lambda: done.append(1))
    assert done == [1]


def test_jobs_are_numbered_and_the_end_comes_last(lead, merged):
    channel = Channel()
    leader = lead(channel)
    for _ in range(2):
        leader.run_on_all(merged, lambda: None)
    leader.shutdown(1)
    assert [MergedJob.from_json(channel.sent[number]["job"]) for number in (1, 2)] == [merged, merged]
    assert channel.sent[3] == {"exit": 1} and channel.waited


def test_a_rank_that_failed_stops_all(lead, merged, capsys):
    with pytest.raises(RankFailed, match="rank 1: no disk"):
        lead(Channel(fails_at=1)).run_on_all(merged, lambda: None)
    channel = Channel()
    leader = lead(channel)
    with pytest.raises(RankFailed, match="rank 0: ValueError: mine"):
        leader.run_on_all(merged, fail)
    leader.shutdown(1)
    assert not hasattr(channel, "waited")  # nobody is left to answer


def test_a_mistake_of_the_users_is_one_with_ranks_too(lead, merged, capsys):
    def slip():
        raise UserError("bits", 0, allowed="more")

    for fails_at in (None, 1):  # the other rank's connection breaks
        with pytest.raises(RankFailed, match=r"^bits=0: allowed is more$") as failed:
            lead(Channel(fails_at=fails_at)).run_on_all(merged, slip)
        assert failed.value.exit_code == 2 and "Traceback" not in capsys.readouterr().err
    with pytest.raises(RankFailed) as failed:
        lead(Channel()).run_on_all(merged, fail)
    assert failed.value.exit_code == 1


def test_a_rank_serves_what_it_is_sent(monkeypatch, merged):
    message = {"job": merged.to_json()}
    monkeypatch.setattr(ranks, "_join", lambda device: Channel(messages=[message, message, {"exit": 3}]))
    received = []
    assert ranks.serve("cpu", received.append) == 3
    assert received == [merged, merged]
