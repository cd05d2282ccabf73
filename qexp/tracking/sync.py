"""Sends to MLflow whatever it missed, in the foreground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexp.base.console import emit
from qexp.base.errors import UserError, UserErrors
from qexp.base.progress import track
from qexp.config.tracking import TrackingSettings
from qexp.tracking.journal import Journal, find_journal, journal_names
from qexp.tracking.mlflow_store import why
from qexp.tracking.sender import Sender


def sync(name: str | None, runs_dir: str | Path, settings: TrackingSettings) -> list[str]:
    """Send one experiment's rows, or every experiment's, and close the runs of dead processes.

    Args:
        name: experiment; None takes all that have a journal.
        runs_dir: where the journals lie.
        settings: where to; `enabled` and `timeout_s` do not matter here.

    Returns:
        A sentence per experiment.

    Raises:
        UserErrors: journals without a whole row; nothing was sent, and nothing is left behind.
        UserError: no such experiment, or the store takes nothing; what did not arrive stays in the journal.
    """
    names = journal_names(runs_dir) if name is None else [name]
    has_rows = _have_rows(names, runs_dir)
    lines = []
    for known in track(names, "experiment", note=str):
        if not has_rows[known]:
            lines.append(f"{known}: its journal is empty, nothing to send")
            emit("record", kind="sync", name=known, rows=0, uri=None)
            continue
        sender = Sender(Journal.of(runs_dir, known), experiment=known, settings=settings, runs_dir=runs_dir)
        try:
            count = sender.catch_up(close_dead=True)
        except UserError:
            raise
        except Exception as error:
            remedy = f"{why(error)}; {sender.behind()} rows of {known} are still to be sent."
            raise UserError("tracking.uri", sender.shown_uri, allowed="a store that answers", remedy=remedy) from error
        rows = {0: "nothing was missing", 1: "1 row sent"}.get(count, f"{count} rows sent")
        lines.append(f"{known}: {rows} ({sender.shown_uri})")
        emit("record", kind="sync", name=known, rows=count, uri=sender.shown_uri)
    return lines or [f"There is no journal in {Path(runs_dir) / 'journal'}: nothing to send."]


def _have_rows(names: Sequence[str], runs_dir: str | Path) -> dict[str, bool]:
    """Experiment -> whether its journal has a row, looked at before there is a lock or a store.

    Raises:
        UserErrors: journals that may not be read, or in which no line is a row.
    """
    has_rows, errors = {}, []
    for name in names:
        path = find_journal(runs_dir, name)
        try:
            rows, offset = Journal.of(runs_dir, name).rows_from(0, limit=1)
        except UserError as error:
            errors.append(error)
            continue
        has_rows[name] = bool(rows)
        if offset and not rows:
            remedy = f"{path} has none: put a copy back, or move it away; name=NAME sends another experiment alone."
            errors.append(UserError("name", name, allowed="an experiment whose journal has a whole row", remedy=remedy))
    if errors:
        raise UserErrors(errors)
    return has_rows
