"""Several processes, one story: rank 0 leads, the others follow.

The leader composes and validates jobs alone; for every merged job it sends the resolved values through the process group's
store, and all ranks run it together. The outcome is agreed before the next job, so a rank that failed alone can never pair its
next collective with another job's.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from qexp.base import dist
from qexp.base.console import complain
from qexp.base.preemption import Preempted, listening
from qexp.pipeline.check import Sweep
from qexp.pipeline.entry import RankFailed

_CHANNEL: dist.ControlChannel | None = None
_NUMBER = 0  # of the last job sent or received
_BROKEN = False  # some rank ended within a job: nobody reads messages any more


def lead(device: str) -> None:
    """Join the process group as rank 0."""
    _join(device)


def _join(device: str) -> dist.ControlChannel:
    global _CHANNEL
    import torch

    # A GPU that is not there is the leader's to complain about, once.
    wants_gpu = torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))
    group = dist.init_from_env("cuda" if wants_gpu else "cpu")
    _CHANNEL = dist.ControlChannel(group.control, group.rank, group.world_size)
    return _CHANNEL


def together(values: Sequence[dict[str, Any]], sweep: Sweep, run: Callable[[], None]) -> None:
    """Leader: send the job to the followers, run it, and raise unless every rank succeeded."""
    global _NUMBER, _BROKEN
    if _CHANNEL is None:
        run()
        return
    _NUMBER += 1
    _CHANNEL.send(_NUMBER, json.dumps({"jobs": list(values), "sweep": asdict(sweep)}))
    _BROKEN = True
    _run_and_agree(_CHANNEL, _NUMBER, run)
    _BROKEN = False


def _run_and_agree(channel: dist.ControlChannel, number: int, run: Callable[[], None]) -> None:
    message = ""
    try:
        run()
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        channel.post(number, message)
        dist.abandon()
    outcomes = channel.agree(number, not message, message)
    failed = [f"rank {rank}: {text}" for rank, text in enumerate(outcomes) if text]
    if failed:
        raise RankFailed("; ".join(failed))


def dismiss(code: int) -> None:
    """Leader: let the followers go, with this exit code."""
    global _NUMBER
    if _CHANNEL is not None:
        _NUMBER += 1
        _CHANNEL.send(_NUMBER, json.dumps({"exit": code}))
        if not _BROKEN:
            _CHANNEL.wait_until_left()


def follow(device: str) -> int:
    """Ranks above 0: run what the leader sends until it dismisses us; returns the exit code."""
    from torch.distributed import DistError

    from qexp.pipeline import story

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
        sweep = Sweep(**message["sweep"])
        try:
            with listening():
                _run_and_agree(channel, number, lambda jobs=message["jobs"], sweep=sweep: story.run_group_here(jobs, sweep))
        except Preempted as stop:
            _leave(f"rank {channel.rank} {stop}", stop.exit_code)
        except RankFailed as error:
            _leave(str(error), 1)


def _leave(message: str, code: int) -> NoReturn:
    """End this process at once: the group may hold half a collective, and destroying it could hang."""
    complain(f"qexp: {message}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
