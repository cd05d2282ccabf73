"""Sends to MLflow whatever it missed, in the foreground."""

from __future__ import annotations

from pathlib import Path

from qexp.base.errors import UserError
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
        UserError: no such experiment, or the store takes nothing; what did not arrive stays in the journal.
    """
    lines = []
    for known in journal_names(runs_dir) if name is None else [name]:
        find_journal(runs_dir, known)
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
    return lines or [f"There is no journal in {Path(runs_dir) / 'journal'}: nothing to send."]
