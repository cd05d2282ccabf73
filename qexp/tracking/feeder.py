"""The process that feeds MLflow, `python -m qexp.tracking.feeder`: started by a `MlflowFeed`, and by nobody else.

Its standard input says what to do. The first line is an order, as JSON: passwords of URIs are for no list of processes. `CLOSE`
asks for what is left, and the end of the input without it says that whoever gave the order is gone. Its standard output says at
the end why MLflow is behind; nothing where it is not. Torch is not loaded here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import FileIO

from qexp.base.orphans import end_with, is_orphan
from qexp.base.text import without_passwords
from qexp.config.tracking import TrackingSettings
from qexp.tracking.journal import Journal
from qexp.tracking.mlflow_store import why
from qexp.tracking.process import Process
from qexp.tracking.sender import Sender

CLOSE = b"close\n"
# Between looks at the journal, and between attempts on a store that fails. What is written meanwhile goes together: a delivery
# takes 0.15 s of a core, which is 1 % of that, however short epochs are.
PAUSE_S = 15.0
LAST_ATTEMPTS = 2  # once told to close
LAST_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to send, and where.

    Args:
        experiment: whose journal, and MLflow's name for it.
        runs_dir: where the journal lies; home of the default store.
        settings: where to.
        owner: whose runs `settings.system_metrics` is about.
    """

    experiment: str
    runs_dir: str
    settings: TrackingSettings
    owner: Process

    def as_line(self) -> bytes:
        """The first line of the process's input."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Order:
        """The order that a line is."""
        values = json.loads(line)
        return cls(**values | {"settings": TrackingSettings(**values["settings"]), "owner": Process(**values["owner"])})

    def sender(self) -> Sender:
        """Who carries it out."""
        journal = Journal.of(self.runs_dir, self.experiment)
        return Sender(journal, experiment=self.experiment, settings=self.settings, runs_dir=self.runs_dir, owner=self.owner)


def follow(sender: Sender, closing: threading.Event, gone: Callable[[], bool]) -> str:
    """Send a journal's rows while they are written, until all are sent that are there at the end.

    Args:
        sender: of the journal.
        closing: set once no more rows are written.
        gone: true once nobody waits for the rest.

    Returns:
        Why MLflow is behind, as far as that is known; empty where it has everything.
    """
    failure, close_dead, last_attempts = "", True, 0
    while not gone():
        last = closing.is_set()
        try:
            sender.catch_up(gone, close_dead=close_dead or last)
            failure, close_dead = "", False
        except Exception as error:  # whatever fails here, the journal keeps the rows
            failure = why(error)
        last_attempts += last
        if last and (not failure or last_attempts >= LAST_ATTEMPTS):
            break
        if last:
            time.sleep(LAST_PAUSE_S)
        else:
            closing.wait(PAUSE_S)
    try:
        sender.system_metrics.end_all()  # of runs that nobody closed
    except Exception as error:
        failure = failure or why(error)
    return failure


def main() -> None:
    """Carry out the order on standard input."""
    # Whoever gave the order gets the same signals, and says by the pipe when this process has sent enough.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = os.getppid()
    end_with(parent)  # by force, should a store hang
    orders = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # a thread that reads a buffer may not be left at the end
    first = orders.readline()
    if not first:
        return
    closing, abandoned = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(orders, closing, abandoned), name="qexp-orders", daemon=True).start()
    with contextlib.redirect_stdout(sys.stderr):  # MLflow may print
        # Another process that was forked meanwhile may hold the pipe open when its first owner is gone.
        failure = follow(Order.of_line(first).sender(), closing, lambda: abandoned.is_set() or is_orphan(parent))
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(sys.stdout.fileno(), without_passwords(failure).encode(errors="backslashreplace"))


def _listen(orders: FileIO, closing: threading.Event, abandoned: threading.Event) -> None:
    """Wait for the one order that follows the first, or for the end of the input."""
    if orders.readline() != CLOSE:
        abandoned.set()
    closing.set()


if __name__ == "__main__":
    main()
