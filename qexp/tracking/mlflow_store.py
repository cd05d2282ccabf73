"""Opening MLflow's store; mlflow is imported inside functions alone.

Importing mlflow costs four seconds and 140 MB, so a process that trains never does it (`feed.py`). Usage statistics are off
unless the user has set the variable; a client that waits minutes for a dead server is of no use to a process that tries again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from qexp.base.files import create_exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG = "qexp.run"  # has the key of a run of ours
ENVIRONMENT_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it would also repeat the making of a run that a slow server is still at
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per run, in the middle of a table
}


def import_mlflow() -> ModuleType:
    """Import mlflow with qexp's defaults for the environment variables that the user has not set."""
    for key, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(key, value)
    import mlflow
    import mlflow.entities
    import mlflow.exceptions

    for name in ("mlflow", "alembic"):
        if logging.getLogger(name).getEffectiveLevel() < logging.WARNING:
            logging.getLogger(name).setLevel(logging.WARNING)
    # What it logs, a traceback for each broken connection to a database, is raised too, and told in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def store_uri(uri: str | None, runs_dir: str | Path) -> str:
    """The tracking URI; None is SQLite in `runs_dir`, by absolute path.

    >>> store_uri(None, "/data/runs")
    'sqlite:////data/runs/mlflow.db'
    """
    return uri if uri is not None else f"sqlite:///{Path(runs_dir).absolute() / 'mlflow.db'}"


@dataclass(frozen=True)
class Store:
    """A tracking store, opened at one experiment.

    Args:
        client: of the store.
        experiment_id: MLflow's id of the experiment.
        identity: tells that experiment from a later one with the same id.
    """

    client: MlflowClient
    experiment_id: str
    identity: str


def open_store(uri: str, *, runs_dir: str | Path, experiment: str) -> Store:
    """Open a tracking store and find or make the experiment in it.

    A SQLite file is opened and its experiment made under a file lock: of four processes on a fresh file, three died without. Its
    artifacts lie in `<runs_dir>/mlartifacts`, by absolute path, as MLflow's own default follows the working directory. A server
    says itself where artifacts go. A deleted experiment comes back: whoever runs it again wants it.

    Args:
        uri: the tracking URI.
        runs_dir: where artifacts of a SQLite store lie.
        experiment: its name.
    """
    mlflow = import_mlflow()
    local = uri.startswith("sqlite:")
    artifacts = (Path(runs_dir).absolute() / "mlartifacts" / experiment).as_uri() if local else None
    with _opening(uri) as database:
        if database is not None and not database.exists():
            _make_database(database)
        client = mlflow.MlflowClient(tracking_uri=uri)
        entity = client.get_experiment_by_name(experiment)
        if entity is None:
            try:
                client.create_experiment(experiment, artifact_location=artifacts)
            except mlflow.exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            entity = client.get_experiment_by_name(experiment)
        if entity.lifecycle_stage == "deleted":
            client.restore_experiment(entity.experiment_id)
    return Store(client, entity.experiment_id, f"{entity.experiment_id} made {entity.creation_time}")


def idle_identity(uri: str, experiment: str) -> str | None:
    """The `Store.identity` of an experiment in a SQLite file where no run is RUNNING, which may be a dead process's; else None.

    Asked of the file itself: MLflow takes seconds to open it. What is not there as MLflow 3 has it gives None.

    Args:
        uri: the tracking URI.
        experiment: its name.
    """
    question = "SELECT experiment_id, creation_time FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
    made = _first(uri, question, experiment)
    running = _first(uri, "SELECT 1 FROM runs WHERE status = 'RUNNING' LIMIT 1")
    return f"{made[0]} made {made[1]}" if made is not None and running is None else None


def lacks_runs(uri: str, experiment: str) -> bool:
    """True where somebody deleted a run of ours from an experiment in a SQLite file, and none of the same key stands there.

    Args:
        uri: the tracking URI.
        experiment: its name.
    """
    keys = (
        "SELECT tags.value FROM tags JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id) "
        "WHERE tags.key = ? AND experiments.name = ? AND runs.lifecycle_stage = ?"
    )
    question = f"{keys} EXCEPT {keys} LIMIT 1"
    return _first(uri, question, RUN_TAG, experiment, "deleted", RUN_TAG, experiment, "active") is not None


def _first(uri: str, question: str, *values: str) -> tuple[Any, ...] | None:
    """The first row that a SQLite file answers with; None where there is none, or no such file."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or not Path(path).is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as database:
            row: tuple[Any, ...] | None = database.execute(question, values).fetchone()
    except sqlite3.Error:
        return None
    return row


@contextlib.contextmanager
def _opening(uri: str) -> Iterator[Path | None]:
    """Hold the lock beside a SQLite file, which is given; nothing for other stores."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or path in ("", ":memory:"):
        yield None
        return
    database = Path(path.partition("?")[0])
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock")):
        yield database


def _make_database(database: Path) -> None:
    """Make MLflow's tables in a file beside it and rename that: a process killed amid the migrations would leave half a store."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for leftover in database.parent.glob(f".{database.name}.*.tmp*"):
        leftover.unlink()
    partial = database.with_name(f".{database.name}.{os.getpid()}.tmp")
    create_exclusive(partial)  # with the umask's mode; SQLite would let its owner alone write to it
    store = SqlAlchemyStore(f"sqlite:///{partial}", (database.absolute().parent / "mlartifacts" / "Default").as_uri())
    store.engine.dispose()
    os.replace(partial, database)


def why(error: BaseException) -> str:
    """One line that says why MLflow could not be fed.

    >>> why(OSError("HTTPConnectionPool(host='h', port=9): Max retries exceeded (Caused by E('[Errno 111] Connection refused'))"))
    'server not reachable: Connection refused'
    """
    text = " ".join(str(error).split())
    if "_alembic_tmp" in text:
        return "the store is half-made; delete its file, the journal holds all of it"
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if match := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return f"server not reachable: {match[1].strip()}" if "HTTP" in text else match[1].strip()
    if "timed out" in text.lower():
        return "server not reachable: timed out"
    if "Max retries exceeded" in text:
        return "server not reachable"
    return f"{type(error).__name__}: {text[:200]}"
