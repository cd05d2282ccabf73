"""The kinds of rows a journal holds.

A run is a training (its key is the training's hash) or one variant of it (`<training hash>/<variant key>`). Running a sweep again
appends the same runs again; whoever reads a journal keeps the last row of each (run, epoch), and the time of the first one where
a later one was only reused.

A job is one line of a sweep, named by the hash of what was asked for. Its rows hold what became of it; reports read them, and
MLflow is not sent them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from qexp.tracking.environment import now_ms
from qexp.tracking.process import Process
from qexp.tracking.record import FLOAT_VARIANT, NEEDED, Record

Row = dict[str, Any]  # as it is read from a journal; `kind` decides what else is there
Scalar = str | int | float | bool | None
JobState = Literal["planned", "running", "done", "failed", "invalid", "preempted", "killed"]
# What the readers of a row ask for, by its kind.
KEYS: Mapping[str, tuple[str, ...]] = {
    "run": ("run", "parent", "name", "params", "tags", "artifacts", "planned_epochs", "time_ms"),
    "record": ("run", "time_ms", "alarms", *NEEDED),
    "metrics": ("run", "step", "values", "time_ms"),
    "end": ("run", "status", "time_ms"),
    "sweep": ("sweep", "command", "time_ms"),
    "files": ("run", "paths", "time_ms"),
    "export": ("run", "key", "time_ms"),
    "model": ("run", "name", "path", "digest", "time_ms"),
    "repeat": ("sweep", "of", "jobs", "process", "time_ms"),
    "job": ("sweep", "key", "job", "training", "variant_key", "state", "process", "time_ms"),
}
NOT_SENT = ("sweep", "job", "repeat", "export")  # kinds of rows that change nothing in MLflow


def run_key(training: str, variant_key: str | None = None) -> str:
    """The key of a training's run, or of one of its variants' runs.

    >>> run_key("1f3a"), run_key("1f3a", "9c")
    ('1f3a', '1f3a/9c')
    """
    return training if variant_key is None else f"{training}/{variant_key}"


def run_of(record: Record) -> str:
    """The run a record belongs to: the float network's rows are the training's own."""
    return run_key(record.training, None if record.variant == FLOAT_VARIANT else record.variant_key)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """A nested configuration as flat parameters; lists become JSON text.

    >>> flatten({"train": {"lr": 0.1, "milestones": [30, 60]}, "seed": 0})
    {'train.lr': 0.1, 'train.milestones': '[30, 60]', 'seed': 0}
    """
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat


def _row(kind: str, time_ms: int | None, **values: Any) -> Row:
    """A row of a kind; now, unless a time is given."""
    return {"kind": kind, **values, "time_ms": now_ms() if time_ms is None else time_ms}


def run_row(
    run: str,
    *,
    name: str,
    params: Mapping[str, Scalar],
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Mapping[str, str] | None = None,
    planned_epochs: int | None = None,
    data_label: str | None = None,
    time_ms: int | None = None,
) -> Row:
    """Open a run, or open it again.

    Args:
        run: its key.
        name: the label a person reads.
        parent: key of the training's run, None for that run itself.
        params: flat; a variant repeats its training's.
        tags: free text.
        artifacts: file name -> its text.
        planned_epochs: epochs the training will have, by which a report finds a partial variant; None where there is no training.
        data_label: what people read of the data set; None for its name, and no part of the row.
        time_ms: when, in milliseconds since 1970; None is now.
    """
    texts = {"params": dict(params), "tags": dict(tags or {}), "artifacts": dict(artifacts or {})}
    process = asdict(Process.current())
    labelled = {} if data_label is None else {"data_label": data_label}
    return _row(
        "run", time_ms, run=run, parent=parent, name=name, **texts, planned_epochs=planned_epochs, **labelled, process=process
    )


def record_row(record: Record) -> Row:
    """One variant's scores after one epoch."""
    row = {"kind": "record", "run": run_of(record), **record.as_row()}
    row["time_ms"] = record.time_ms or now_ms()
    return row


def metrics_row(run: str, *, step: int, values: Mapping[str, float], time_ms: int | None = None) -> Row:
    """Points of training curves (`train_loss`, `lr`), step = epoch."""
    return _row("metrics", time_ms, run=run, step=step, values=dict(values))


def end_row(run: str, status: Literal["FINISHED", "FAILED", "KILLED"], *, time_ms: int | None = None) -> Row:
    """Close a run."""
    assert status in ("FINISHED", "FAILED", "KILLED"), status
    return _row("end", time_ms, run=run, status=status)


def sweep_row(
    sweep: str, *, command: str, versions: Mapping[str, str], host: str, git: str | None, time_ms: int | None = None
) -> Row:
    """What was typed, and where it ran; for the report."""
    return _row("sweep", time_ms, sweep=sweep, command=command, versions=dict(versions), host=host, git=git)


def repeat_row(sweep: str, of: str, jobs: Iterable[tuple[int, int, int]], *, time_ms: int | None = None) -> Row:
    """Jobs that were done when they were asked for again.

    Args:
        sweep: id.
        of: id of the sweep that began the same jobs.
        jobs: ranges: number of the first job here, its number there, how many follow each other.
        time_ms: as in `run_row`.
    """
    return _row("repeat", time_ms, sweep=sweep, of=of, jobs=[list(part) for part in jobs], process=asdict(Process.current()))


def files_row(run: str | None, paths: Iterable[str | Path], *, time_ms: int | None = None) -> Row:
    """Files to keep with a run, or with every training's run where `run` is None."""
    return _row("files", time_ms, run=run, paths=[str(Path(path).absolute()) for path in paths])


def export_row(run: str, *, key: str, values: Mapping[str, Any], time_ms: int | None = None) -> Row:
    """What an exported network gave in its runtimes, for the report.

    Args:
        run: the variant's.
        key: names file, settings and runtimes: an equal one replaces the row.
        values: JSON of any depth.
        time_ms: as in `run_row`.
    """
    return _row("export", time_ms, run=run, key=key, **values)


def model_row(run: str, *, name: str, path: str | Path, example: str | Path, digest: str, time_ms: int | None = None) -> Row:
    """A file that becomes a version of a registered model.

    Args:
        run: that it belongs to.
        name: of the registered model.
        path: of the ONNX file.
        digest: of its bytes; the version is found again by it.
        example: an .npz with `images` [N, C, H, W] and `logits` [N, classes], float32.
        time_ms: as in `run_row`.
    """
    files = {"path": str(Path(path).absolute()), "example": str(Path(example).absolute())}
    return _row("model", time_ms, run=run, name=name, **files, digest=digest)


def job_row(
    sweep: str,
    key: str,
    state: JobState,
    *,
    job: int | None = None,
    asked: str | None = None,
    training: str | None = None,
    variant_key: str | None = None,
    variant: str | None = None,
    fresh: bool = False,
    reason: str | None = None,
    traceback: str | Path | None = None,
    time_ms: int | None = None,
) -> Row:
    """What became of a job. A value of None is not known here: an earlier row of the same (sweep, key) may have it.

    Args:
        sweep: id.
        key: hash of what was asked for, equal when it is asked for again.
        state: what became of it.
        job: number in the sweep.
        asked: the values in which it differs from the sweep's other jobs, as typed.
        variant: label.
        training: its hash, as in `Record`.
        variant_key: the variant's hash, as in `Record`.
        fresh: numbers from before do not count.
        reason: why it is invalid or failed, in one line.
        traceback: a file.
        time_ms: as in `run_row`.
    """
    assert state in get_args(JobState), state
    known = {"job": job, "asked": asked, "training": training, "variant_key": variant_key, "variant": variant, "fresh": fresh}
    file = None if traceback is None else str(Path(traceback).absolute())
    process = asdict(Process.current())
    return _row("job", time_ms, sweep=sweep, key=key, **known, state=state, reason=reason, traceback=file, process=process)
