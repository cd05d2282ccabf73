"""Requests to stop: SIGTERM from a scheduler, Ctrl-C from a person; torch-free.

While the training loop takes its steps, the signal is only noted: the loop saves at the next step, on all ranks at the same
one, and raises `Preempted` then. Everywhere else nothing is lost by stopping at once, so the signal raises `Preempted` on the
spot. A second Ctrl-C never waits. `Preempted` is no `Exception`: whoever catches those to go on with the next job must not
catch this.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_requested: signal.Signals | None = None
_deferred = 0
_owner = os.getpid()


class Preempted(BaseException):
    """This process was asked to stop; the same command goes on where it stopped."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(f"stopped by {signum.name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it: 143 after SIGTERM, 130 after Ctrl-C."""
        return 128 + self.signum


@contextmanager
def listening() -> Iterator[None]:
    """Handle the signals within; only the main thread can, elsewhere nothing changes."""
    global _requested, _owner
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _owner = os.getpid()
    before = {signum: signal.signal(signum, _note) for signum in SIGNALS}
    try:
        yield
    finally:
        _requested = None
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _note(signum: int, frame: FrameType | None) -> None:
    global _requested
    if os.getpid() != _owner:  # a DataLoader's worker, which inherited the handler: Ctrl-C is its parent's to answer
        if signum != signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        return
    if _requested is not None and signum != signal.SIGINT:
        return  # a scheduler signals the launcher and its ranks, and the launcher its ranks again
    again, _requested = _requested is not None, signal.Signals(signum)
    if again or not _deferred:
        raise Preempted(_requested)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal is noted and not raised; `requested` is true from then on."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def requested() -> bool:
    """True once a signal came."""
    return _requested is not None


def is_awaited() -> bool:
    """True while a signal that came waits for the training's next step."""
    return _requested is not None and _deferred > 0


def stop() -> Preempted:
    """What to raise once the state is saved; on a rank that got no signal itself, SIGTERM is what another one got."""
    return Preempted(_requested or signal.SIGTERM)
