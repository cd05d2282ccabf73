"""Feeds MLflow from the journal by a process of its own, so that nothing MLflow does can stop, slow or fail a training.

MLflow's import takes four seconds of a core, and each delivery 0.15: in a thread both would hold the interpreter's lock, which
the steps of a training need. The process reads the journal, as `qexp.sync` does; the training writes it and goes on.

Rejected: a lower priority for it, since a machine that has much to do would then not be done at the end of a sweep, and a process
may not raise itself again; `multiprocessing`, which runs the user's program a second time to start.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from qexp.base.console import print_main
from qexp.config.root import Config
from qexp.config.tracking import TrackingSettings
from qexp.tracking.feeder import CLOSE, Order
from qexp.tracking.journal import Journal
from qexp.tracking.process import Process
from qexp.tracking.rows import files_row

PREEMPTED_LIMIT_S = 5.0  # for MLflow, where a scheduler's grace period runs; `qexp.sync` or the next start sends the rest
STARTS = 2  # of the process: what ends a second one would end a third


class MlflowFeed:
    """Has a journal's rows sent to MLflow while they are written.

    Args:
        journal: what to send, that of the experiment in `runs_dir`.
        experiment: MLflow's name for it.
        settings: where to, and how long `close` waits.
        runs_dir: home of the default store.

    Does nothing where `settings.enabled` is false: the journal has all of it, and `qexp.sync` sends it when asked.
    """

    def __init__(self, journal: Journal, *, experiment: str, settings: TrackingSettings, runs_dir: str | Path) -> None:
        self._journal, self._settings = journal, settings
        self._order = Order(experiment=experiment, runs_dir=str(runs_dir), settings=settings, owner=Process.current())
        self._sender = self._order.sender()
        self._starts_left = STARTS if settings.enabled else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._failure = ""

    @property
    def is_on(self) -> bool:
        """True where rows are sent."""
        return self._settings.enabled

    def start(self) -> None:
        """Begin: send what is there, and set the runs that this machine's dead processes left RUNNING to KILLED."""
        self.notify()

    def notify(self) -> None:
        """Say that there are new rows: a process that was ended is started again, once; returns at once."""
        if self._starts_left and (self._process is None or self._process.poll() is not None):
            self._starts_left -= 1
            self._discard()
            self._start()

    def log_files(self, run: str | None, paths: Iterable[str | Path]) -> None:
        """Keep files with a run, or with every training's run where `run` is None; they go through the journal."""
        self._journal.append([files_row(run, paths)])
        self.notify()

    def close(self, limit_s: float | None = None) -> str | None:
        """Wait until MLflow has everything.

        Args:
            limit_s: for how long, where that is less than the settings' `timeout_s`.

        Returns:
            None, or the sentence for the user where it is behind.
        """
        if not self._settings.enabled:
            return None
        self.notify()
        limit_s = self._settings.timeout_s if limit_s is None else min(limit_s, self._settings.timeout_s)
        reason = self._end(limit_s)
        count = self._sender.behind()
        if not count:
            return None
        rows = "1 row" if count == 1 else f"{count} rows"
        return f"MLflow is behind by {rows} ({reason}); {self._sync_command()} sends them"

    def _sync_command(self) -> str:
        """What to type, with the settings that are not the defaults."""
        words = ["python", "-m", "qexp.sync", f"name={self._order.experiment}"]
        words += [f"uri={self._sender.shown_uri}"] if self._settings.uri is not None else []
        words += [f"runs_dir={self._order.runs_dir}"] if Path(self._order.runs_dir) != Path("runs") else []
        return shlex.join(words)

    def _start(self) -> None:
        """Start the process and give it its order; a system that refuses is a reason to be behind, and no more."""
        command = [sys.executable, "-P", "-m", "qexp.tracking.feeder"]
        # It finds what this process found. Python passes over an entry that is no text, as a Path that a user's file added.
        folders = [entry for entry in sys.path if isinstance(entry, str)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
        try:
            # A process group of its own, which a terminal's Ctrl-C does not reach, not even before the process can ignore it. No
            # session of its own: Linux may share the processor among sessions.
            self._process = subprocess.Popen(
                command, env=environment, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
            )
        except OSError as error:
            self._failure = f"no process could be started: {error.strerror}"
            return
        self._tell(self._order.as_line())

    def _tell(self, line: bytes) -> None:
        """Write to the process, unless it has ended. The few bytes that it is told fit into a pipe: nobody waits for it here."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(line)

    def _end(self, limit_s: float) -> str:
        """Have the process send what is left, and end it; returns why MLflow is behind, if it is."""
        process = self._process
        if process is None:
            return self._failure
        try:
            self._tell(CLOSE)
            said, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"no answer within {limit_s:g} s"
        finally:
            self._discard()
        return said.decode() or _how_it_ended(process.returncode)

    def _discard(self) -> None:
        """End the process at once, if there is one; neither it nor its pipes are left. No row is lost or doubled by that."""
        if self._process is not None:
            with self._process:
                self._process.kill()
            self._process = None


def _how_it_ended(code: int) -> str:
    """Why a process that said nothing sent nothing more."""
    if code < 0:
        return f"its process was ended by signal {-code}"
    return f"its process ended with exit code {code}" if code else "it was stopped"


class Feeds:
    """The feeds of a process, one for each experiment that it writes to; they live until `close`."""

    def __init__(self) -> None:
        self._feeds: dict[tuple[str, str], MlflowFeed] = {}  # by runs_dir and experiment

    def of(self, config: Config) -> MlflowFeed:
        """The feed that follows the journal of a job's experiment; started when it is first asked for."""
        key = (config.runs_dir, config.name)
        if key not in self._feeds:
            journal = Journal.of(config.runs_dir, config.name)
            self._feeds[key] = MlflowFeed(journal, experiment=config.name, settings=config.tracking, runs_dir=config.runs_dir)
            self._feeds[key].start()
        return self._feeds[key]

    def close(self, *, hurry: bool = False) -> None:
        """Wait until MLflow has what this process wrote, and say where it is behind.

        Args:
            hurry: not for long, as a signal stopped this process.
        """
        if hurry and any(feed.is_on for feed in self._feeds.values()):
            print_main(f"MLflow has {PREEMPTED_LIMIT_S:g} s to take what is measured")
        while self._feeds:
            behind = self._feeds.popitem()[1].close(limit_s=PREEMPTED_LIMIT_S if hurry else None)
            if behind:
                print_main(behind)
