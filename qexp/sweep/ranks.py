"""Several processes, one sweep: rank 0 leads, the others serve.

The leader composes and checks jobs alone; for every merged job it sends the job through the process group's store, and all ranks
run it together. The outcome is agreed before the next job, so a rank that failed alone can never pair its next collective with
another job's.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import NoReturn, Protocol

from qexp.base import dist
from qexp.base.console import warn_main
from qexp.base.control import ControlChannel
from qexp.base.errors import RankFailed, is_mistake
from qexp.base.preemption import Preempted, listening
from qexp.base.text import without_passwords
from qexp.sweep.types import MergedJob


class Ranks(Protocol):
    """The ranks that run a merged job together, seen from the first of them."""

    def run_on_all(self, job: MergedJob, run: Callable[[], None]) -> None:
        """Have all ranks run `job`, this one by `run`; raises unless every one succeeded."""
        ...


class Alone:
    """The only process there is."""

    def run_on_all(self, job: MergedJob, run: Callable[[], None]) -> None:
        """Run it here."""
        run()


class Leader:
    """Rank 0 of a process group: sends jobs to the others and runs them too.

    Args:
        device: as asked for; decides between NCCL and gloo.
    """

    def __init__(self, device: str) -> None:
        self._channel = _join(device)
        self._number = 0  # of the last message sent
        self._broken = False  # some rank ended within a job: nobody reads messages any more

    def run_on_all(self, job: MergedJob, run: Callable[[], None]) -> None:
        """Send the job to the other ranks, run it, and agree on the outcome.

        Raises:
            RankFailed: some rank failed.
        """
        self._number += 1
        self._channel.send(self._number, json.dumps({"job": job.to_json()}))
        self._broken = True
        _run_and_agree(self._channel, self._number, run)
        self._broken = False

    def shutdown(self, code: int) -> None:
        """Let the other ranks go, with this exit code."""
        self._number += 1
        self._channel.send(self._number, json.dumps({"exit": code}))
        if not self._broken:
            self._channel.wait_until_left()


def serve(device: str, run: Callable[[MergedJob], None]) -> int:
    """Ranks above 0: run what the leader sends until it lets us go.

    Args:
        device: as asked for.
        run: runs a job on this rank.

    Returns:
        The exit code.
    """
    from torch.distributed import DistError

    channel = _join(device)
    number = 0
    while True:
        number += 1
        try:
            message = json.loads(channel.receive(number))
        except DistError:
            _leave("rank 0 is gone", 1)
        if "exit" in message:
            channel.leave()
            return message["exit"]
        job = MergedJob.from_json(message["job"])
        try:
            with listening():
                _run_and_agree(channel, number, partial(run, job))
        except Preempted as stop:
            _leave(f"rank {channel.rank} {stop}", stop.exit_code)
        except RankFailed as error:
            _leave(str(error), error.exit_code)


def _join(device: str) -> ControlChannel:
    import torch

    # A GPU that is not there is the leader's to complain about, once.
    wants_gpu = torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))
    group = dist.init_from_env("cuda" if wants_gpu else "cpu")
    return ControlChannel(group.control, group.rank, group.world_size)


def _run_and_agree(channel: ControlChannel, number: int, run: Callable[[], None]) -> None:
    message, mistake = "", False
    try:
        run()
    except Exception as error:
        mistake = is_mistake(error)
        message = str(error) if mistake else f"{type(error).__name__}: {error}"
        if not mistake and not channel.hears_of_mistake(number):
            print(without_passwords(traceback.format_exc()), file=sys.stderr)
        channel.post(number, message, mistake=mistake)
        dist.abandon()
    outcomes = channel.agree(number, not message, message, mistake=mistake)
    failed = {rank: text for rank, text in enumerate(outcomes) if text}
    if channel.mistakes:  # what else failed lost its connection to these
        first = min(channel.mistakes)  # as a rule all ranks have the same
        raise RankFailed(failed[first] if first == 0 else f"rank {first}: {failed[first]}", mistake=True)
    if failed:
        raise RankFailed("; ".join(f"rank {rank}: {text}" for rank, text in failed.items()))


def _leave(message: str, code: int) -> NoReturn:
    """End this process at once: the group may hold half a collective, and destroying it could hang."""
    warn_main(f"qexp: {message}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
