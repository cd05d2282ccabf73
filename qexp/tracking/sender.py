"""From the journal to MLflow, and how far.

The points sent are a function of the journal (see `changes`), and MLflow stores identical points once, so any part may be sent
again. The progress file saves doing so; without it everything is sent anew and nothing is doubled. The processes of an experiment
share it under a lock: whichever runs sends the rows of all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qexp.base.files import hash_json, write_text_atomic
from qexp.base.text import without_passwords
from qexp.config.tracking import TrackingSettings
from qexp.tracking.changes import Changes, ChangeTracker
from qexp.tracking.journal import Journal, journal_names
from qexp.tracking.mlflow_runs import MlflowRuns
from qexp.tracking.mlflow_store import Store, idle_identity, lacks_runs, open_store, store_uri
from qexp.tracking.process import Process
from qexp.tracking.rows import NOT_SENT
from qexp.tracking.system_metrics import SystemMetrics

CHUNK_ROWS = 500
LOCK_TIMEOUT_S = 30


class Sender:
    """Sends an experiment's journal to MLflow; not for more than one thread.

    Args:
        journal: what to send.
        experiment: MLflow's name for it.
        settings: where to.
        runs_dir: home of the default store.
        owner: whose runs `settings.system_metrics` is about; None is this process.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        experiment: str,
        settings: TrackingSettings,
        runs_dir: str | Path,
        owner: Process | None = None,
    ) -> None:
        self._journal, self._experiment, self._runs_dir = journal, experiment, Path(runs_dir)
        self._uri = store_uri(settings.uri, runs_dir)
        self.shown_uri = without_passwords(self._uri)
        self._progress_path = journal.path.with_name(f"{journal.path.stem}.mlflow.json")
        self._lock = FileLock(journal.path.with_name(f".{journal.path.stem}.mlflow.lock"), thread_local=False)
        self._offset, self._tracker = 0, ChangeTracker()
        self.system_metrics = SystemMetrics(self._uri, enabled=settings.system_metrics, owner=owner or Process.current())

    def behind(self) -> int:
        """How many rows MLflow has not been sent."""
        rows, _ = self._journal.rows_from(self._progress().get("offset", 0))
        return sum(row["kind"] not in NOT_SENT for row in rows)

    def has_all(self) -> bool:
        """True where a store in a file surely has every row, and none of its runs is open.

        Where somebody deleted a run, how far it got is forgotten: all is sent anew, by which the run comes back.
        """
        if lacks_runs(self._uri, self._experiment):
            self._forget_progress()
            return False
        known = self._progress().get("experiment")
        return known is not None and idle_identity(self._uri, self._experiment) == known and not self.behind()

    def catch_up(self, stop: Callable[[], bool] = lambda: False, *, close_dead: bool = False) -> int:
        """Send what MLflow has not been sent; returns the number of rows.

        Args:
            stop: asked between chunks; true ends it early.
            close_dead: set the runs of this machine's dead processes to KILLED, although there may be nothing to send.

        Raises:
            RuntimeError: another process has been sending for long.
            Exception: whatever MLflow raises.
        """
        self._journal.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise RuntimeError("another process is sending") from None
        try:
            return self._catch_up(stop, close_dead) if close_dead or self.behind() else 0
        except BaseException:
            self._offset, self._tracker = 0, ChangeTracker()  # it may have noted rows that did not arrive
            raise
        finally:
            self._lock.release()

    def _catch_up(self, stop: Callable[[], bool], close_dead: bool) -> int:
        """`catch_up` under the lock."""
        store = open_store(self._uri, runs_dir=self._runs_dir, experiment=self._experiment)
        runs = MlflowRuns(store, self.system_metrics)
        count = 0
        self._skip_sent(store, runs)
        while not stop():
            rows, offset = self._journal.rows_from(self._offset, limit=CHUNK_ROWS)
            if not rows:
                if close_dead:
                    runs.close_dead(self._tracker.last_ms, journal_names(self._runs_dir))
                if not runs.duplicates:
                    break
                # The progress goes back before the deletion: whoever goes on from here sends all points to the run that stays.
                self._offset, self._tracker = 0, ChangeTracker()
                self._save_progress(store)
                runs.delete_duplicates()
                continue
            _apply(self._tracker.take(rows), runs)
            self._offset, count = offset, count + sum(row["kind"] not in NOT_SENT for row in rows)
            self._save_progress(store)
        return count

    def _skip_sent(self, store: Store, runs: MlflowRuns) -> None:
        """Let the tracker note what was sent, by this process or another; nothing was, if the experiment has been made since."""
        progress = self._progress()
        target = progress.get("offset", 0) if progress.get("experiment") == store.identity else 0
        if target < self._offset:
            self._offset, self._tracker = 0, ChangeTracker()
        rows, self._offset = self._journal.rows_from(self._offset, end=target)
        changes = self._tracker.take(rows)
        for row in changes.opens:
            runs.follow(row)
        for run in changes.ends:  # which another process has ended in MLflow
            self.system_metrics.end(run)

    def _head(self) -> str:
        """Names the journal by its first row: another file under the same name has another."""
        return hash_json(repr(self._journal.rows_from(0, limit=1)[0]))

    def _all_progress(self) -> dict[str, dict[str, Any]]:
        """The progress file: tracking URI -> how far; empty where it is missing or unreadable, as nothing is lost by that."""
        try:
            progress = json.loads(self._progress_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return progress if isinstance(progress, dict) else {}

    def _progress(self) -> dict[str, Any]:
        """How far this store got with this very journal."""
        entry = self._all_progress().get(self.shown_uri, {})
        return entry if entry and entry.get("journal") == self._head() else {}

    def _save_progress(self, store: Store) -> None:
        """Note how far this store got."""
        entry = {"offset": self._offset, "experiment": store.identity, "journal": self._head()}
        self._write_progress(self._all_progress() | {self.shown_uri: entry})

    def _forget_progress(self) -> None:
        """Note that this store is to get all anew; a process that is sending goes on as it is."""
        with contextlib.suppress(Timeout), self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            self._write_progress({uri: entry for uri, entry in self._all_progress().items() if uri != self.shown_uri})

    def _write_progress(self, progress: dict[str, dict[str, Any]]) -> None:
        write_text_atomic(self._progress_path, json.dumps(progress, indent=1) + "\n")


def _apply(changes: Changes, runs: MlflowRuns) -> None:
    """Do in MLflow what the rows changed."""
    for row in changes.opens:
        runs.open(row)
    for run, points in changes.points.items():
        runs.log_points(run, points)
    for run, tags in changes.tags.items():
        runs.set_tags(run, tags)
    for run, texts in changes.texts.items():
        runs.log_texts(run, texts)
    for run, paths in changes.files.items():
        runs.log_files(run, paths)
    for row in changes.models:
        runs.register(row)
    for run, row in changes.ends.items():
        runs.close(run, row["status"], row["time_ms"])
