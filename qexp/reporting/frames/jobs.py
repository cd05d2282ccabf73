"""What became of the jobs of an experiment, derived from its journal.

Rows are never corrected. The numbers decide first, then whether a process that began a job still runs, then the last row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qexp.tracking.journal import experiment_rows
from qexp.tracking.process import Process
from qexp.tracking.repeats import rows_of_jobs
from qexp.tracking.rows import Row

JOB_COLUMNS = (
    "sweep", "job", "asked", "training", "variant", "state", "reason", "traceback", "host", "pid", "time_ms", "key",
    "variant_key",
)  # fmt: skip
# In the order in which a reader sees them; of a training's jobs the first of these is the float network's.
STATES = ("done", "running", "preempted", "killed", "failed", "planned", "invalid")
EXPLAINED = ("preempted", "killed", "failed", "invalid")
MAX_NAMES, MAX_LINES = 4, 8


def load_jobs(name: str, runs_dir: str | Path) -> pd.DataFrame:
    """The jobs of an experiment's latest sweep in their order, then those of earlier sweeps that are not done.

    Behind a sweep that was refused come all jobs of the one before it.

    `state` is `done` once the numbers of the training's last epoch are there; else `running` where a process that began it
    lives (on another machine: may live); else what the last row says, `killed` where that process is dead. `fresh=true`
    forgets the numbers from before. A sweep that was refused counts for nothing once there is a later one.

    Raises:
        UserError: no such experiment.
    """
    return jobs_of(experiment_rows(name, runs_dir))


def jobs_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The same from the rows of the experiment's journal."""
    history = _History(rows)
    # Those that were done and those that were to do are noted apart.
    latest = sorted((entry for entry in history.entries if entry["sweep"] == history.latest), key=lambda entry: entry["job"])
    if history.latest in history.refused:  # which did nothing: what was there before it is still what there is
        before = [entry["sweep"] for entry in history.entries if entry["sweep"] not in history.refused][-1:]
        latest += [entry for entry in history.entries if entry["sweep"] in before]
    jobs = [history.job(entry) for entry in latest]
    listed = {entry["key"] for entry in latest}
    for entry in reversed(history.entries):  # the last time that a job was asked for counts
        if entry["key"] not in listed and entry["sweep"] not in history.ignored:
            listed.add(entry["key"])
            job = history.job(entry)
            jobs += [job] if job["state"] != "done" else []
    return pd.DataFrame(jobs, columns=list(JOB_COLUMNS)).astype({"job": "Int64", "pid": "Int64", "time_ms": "Int64"})


class _History:
    """The rows of a journal that are about jobs.

    `entries` are the rows by which sweeps began their jobs; `latest` is the last sweep; `refused` are those that were, `ignored`
    the ones of them that were followed.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        about_jobs = list(rows_of_jobs(rows))
        self.entries = [row for row in about_jobs if row["job"] is not None]
        self.latest = self.entries[-1]["sweep"] if self.entries else None
        self.refused = {row["sweep"] for row in about_jobs if row["state"] == "invalid"}
        self.ignored = self.refused - {self.latest}
        self._rows_of_job: dict[str, list[Row]] = {}
        for row in about_jobs:
            if row["sweep"] not in self.ignored:
                self._rows_of_job.setdefault(row["key"], []).append(row)
        self._planned_epochs = {row["run"]: row["planned_epochs"] for row in rows if row["kind"] == "run"}
        self._numbers: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for row in rows:
            if row["kind"] == "record":
                self._numbers.setdefault((row["training"], row["variant_key"]), []).append((row["epoch"], row["time_ms"]))
        records = sorted((row for row in rows if row["kind"] == "record"), key=lambda row: row["epoch"])
        self._labels = {(row["training"], row["variant_key"]): row["variant"] for row in records}
        self._dead: dict[Process, bool] = {}

    def job(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """One row of the result."""
        job_rows = self._rows_of_job[entry["key"]]
        known = {name: _last(job_rows, name) for name in ("training", "variant_key", "variant")}
        # Once it has run, it is called by what was done.
        known["variant"] = self._labels.get((known["training"], known["variant_key"]), known["variant"])
        row, state = self._state(job_rows, entry, known)
        why = {
            name: _last(self._of_sweep(job_rows, row), name) if state in EXPLAINED else None for name in ("reason", "traceback")
        }
        process = row["process"]
        if state == "killed":
            why["reason"] = f"process {process['pid']} on {process['host']} was stopped"
        machine = {name: process[name] if state == "running" else None for name in ("host", "pid")}
        asked = {name: entry[name] for name in ("sweep", "job", "asked", "key")}
        return {**asked, **known, **why, **machine, "state": state, "time_ms": row["time_ms"]}

    def _state(
        self, job_rows: Sequence[Mapping[str, Any]], entry: Mapping[str, Any], known: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], str]:
        """The row that decides, and the state."""
        if entry["state"] == "invalid":
            return entry, "invalid"
        since = max((row["time_ms"] for row in job_rows if row["fresh"] and row["job"] is not None), default=0)
        if self._complete(known["training"], known["variant_key"], since):
            return job_rows[-1], "done"
        last_of = {row["sweep"]: row for row in job_rows}
        for row in last_of.values():
            if row["state"] == "running" and not self._is_dead(row):
                return row, "running"
        row = job_rows[-1]
        return row, "killed" if row["state"] == "running" else row["state"]

    def _complete(self, training: str | None, variant_key: str | None, since: int) -> bool:
        """True where the last epoch, or the checkpoint, has its numbers."""
        if training is None or variant_key is None:
            return False
        last = self._planned_epochs.get(training) or 0
        return any(epoch >= last and time_ms >= since for epoch, time_ms in self._numbers.get((training, variant_key), ()))

    def _is_dead(self, row: Mapping[str, Any]) -> bool:
        process = Process(**row["process"])
        if process not in self._dead:
            self._dead[process] = process.dead
        return self._dead[process]

    @staticmethod
    def _of_sweep(job_rows: Iterable[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [other for other in job_rows if other["sweep"] == row["sweep"]]


def _last(job_rows: Iterable[Mapping[str, Any]], name: str) -> Any:
    """The last value that is not None."""
    return next((row[name] for row in reversed(list(job_rows)) if row[name] is not None), None)


def variant_states(jobs: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(training, variant_key) -> state, of the jobs that are not done."""
    open_jobs = jobs[(jobs["state"] != "done") & jobs["variant_key"].notna()]
    return {(row.training, row.variant_key): row.state for row in open_jobs.itertuples()}


def format_jobs(jobs: pd.DataFrame) -> str:
    """How many jobs are in which state, and a line for those that something happened to.

    Args:
        jobs: of `load_jobs`.
    """
    counts = jobs["state"].value_counts()
    lines = [f"jobs: {', '.join(f'{counts[state]} {state}' for state in STATES if state in counts)}"]
    eventful = jobs[~jobs["state"].isin(("done", "planned"))].fillna({"reason": "", "traceback": ""})
    ranked: list[tuple[int, str]] = []
    for (state, reason, file), part in eventful.groupby(["state", "reason", "traceback"], sort=False):
        details = [text for text in (reason, f"traceback: {_near(file)}" if file else "") if text]
        ranked.append((STATES.index(state), f"  {state}: {_names(part)}" + (f" ({'; '.join(details)})" if details else "")))
    texts = [text for _, text in sorted(ranked, key=lambda item: item[0])]
    lines += texts[:MAX_LINES] + ([f"  ... and {len(texts) - MAX_LINES} lines more: jobs.csv"] if len(texts) > MAX_LINES else [])
    return "\n".join(lines)


def _names(part: pd.DataFrame) -> str:
    names = list(dict.fromkeys(part["asked"]))
    return ", ".join(names[:MAX_NAMES]) + (f", ... ({len(names)})" if len(names) > MAX_NAMES else "")


def _near(file: str) -> str:
    """A path as it is shorter."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
