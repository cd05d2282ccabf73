"""Feeds MLflow from the journal in a thread of rank 0, so that nothing MLflow does can stop, slow or fail a training."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from qexp.base.console import print_main
from qexp.config.root import Config
from qexp.config.tracking import TrackingSettings
from qexp.tracking.journal import Journal
from qexp.tracking.mlflow_store import why
from qexp.tracking.rows import files_row
from qexp.tracking.sender import Sender

POLL_S = 5.0  # between looks at the journal without a notification: other processes write to it too
RETRY_S = 15.0  # between attempts on a store that fails
PREEMPTED_LIMIT_S = 5.0  # for MLflow, where a scheduler's grace period runs; `qexp.sync` or the next start sends the rest
LAST_ATTEMPTS = 2  # after `close` was called


class MlflowFeed:
    """Sends a journal's rows to MLflow while they are written.

    Args:
        journal: what to send.
        experiment: MLflow's name for it.
        settings: where to, and how long `close` waits.
        runs_dir: home of the default store.

    Does nothing where `settings.enabled` is false: the journal has all of it, and `qexp.sync` sends it when asked.
    """

    def __init__(self, journal: Journal, *, experiment: str, settings: TrackingSettings, runs_dir: str | Path) -> None:
        self._journal, self._settings, self._experiment, self._runs_dir = journal, settings, experiment, runs_dir
        self._sender = Sender(journal, experiment=experiment, settings=settings, runs_dir=runs_dir)
        self._wake, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._failure = ""
        # A daemon: a server that never answers must not keep a finished process alive.
        self._thread = threading.Thread(target=self._run, name="qexp-mlflow-feed", daemon=True)

    @property
    def is_on(self) -> bool:
        """True where rows are sent."""
        return self._settings.enabled

    def start(self) -> None:
        """Begin: send what is there, and set the runs that this machine's dead processes left RUNNING to KILLED."""
        if self._settings.enabled:
            self._thread.start()

    def notify(self) -> None:
        """Say that there are new rows, so that they are sent now and not at the next look; returns at once."""
        self._wake.set()

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
        assert self._thread.ident is not None, "close before start"
        self._closing.set()
        self._wake.set()
        limit_s = self._settings.timeout_s if limit_s is None else min(limit_s, self._settings.timeout_s)
        self._thread.join(limit_s)
        late = self._thread.is_alive()
        self._abandoned.set()
        count = self._sender.behind()
        if not count:
            return None
        reason = self._failure or (f"no answer within {limit_s:g} s" if late else "it was stopped")
        rows = "1 row" if count == 1 else f"{count} rows"
        return f"MLflow is behind by {rows} ({reason}); {self._sync_command()} sends them"

    def _sync_command(self) -> str:
        """What to type, with the settings that are not the defaults."""
        words = ["python", "-m", "qexp.sync", f"name={self._experiment}"]
        words += [f"uri={self._sender.shown_uri}"] if self._settings.uri is not None else []
        words += [f"runs_dir={self._runs_dir}"] if Path(self._runs_dir) != Path("runs") else []
        return shlex.join(words)

    def _run(self) -> None:
        """The thread: send when notified, try again after a failure, end once closed."""
        close_dead, last_attempts = True, 0
        while True:
            closing = self._closing.is_set()
            try:
                self._sender.catch_up(self._abandoned.is_set, close_dead=close_dead or closing)
                self._failure, close_dead = "", False
            except Exception as error:  # whatever fails here, the training goes on and the journal keeps the rows
                self._failure = why(error)
            last_attempts += closing
            if self._abandoned.is_set() or (closing and (not self._failure or last_attempts >= LAST_ATTEMPTS)):
                self._sender.system_metrics.end_all()  # of runs that nobody closed
                return
            if closing:
                time.sleep(1.0)
            else:
                self._wake.wait(RETRY_S if self._failure else POLL_S)
                self._wake.clear()


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
