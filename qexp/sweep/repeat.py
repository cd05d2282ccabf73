"""Which groups of a sweep have nothing left to do: every number is stored, written down and, where it belongs, in MLflow.

They are not launched, and the journal notes their jobs in a few bytes. Whatever else there is to do, they are run as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from qexp.base.files import hash_file
from qexp.config.root import Config
from qexp.experiment.job import Prepared
from qexp.experiment.recorded import Recorded
from qexp.experiment.recorder import Recorder
from qexp.experiment.training import final_epochs
from qexp.reporting.tables.results import JOBS_TABLE
from qexp.tracking.journal import Followed, Journal
from qexp.tracking.record import Sweep
from qexp.tracking.rows import Row
from qexp.tracking.sender import Sender


class Journals:
    """The journals of a command, by experiment, each row read once."""

    def __init__(self) -> None:
        self._followed: dict[tuple[str, str], Followed] = {}

    def of(self, config: Config) -> Followed:
        """The journal of a job's experiment."""
        key = (config.runs_dir, config.name)
        return self._followed.setdefault(key, Followed(Journal.of(*key)))


def done_already(prepared: Sequence[Prepared], sweep: Sweep, journals: Journals) -> list[bool]:
    """Of each group of jobs, whether running it would find nothing to do.

    Args:
        prepared: the groups.
        sweep: that asks for them.
        journals: of this command.
    """
    if sweep.verb not in ("train", "evaluate"):
        return [False] * len(prepared)
    known: dict[int, Recorded] = {}

    def is_done(one: Prepared) -> bool:
        epochs = final_epochs(one)
        if epochs is None or (one.start is not None and not is_done(one.start)):
            return False
        journal = journals.of(one.config)
        if id(journal) not in known:
            known[id(journal)] = Recorded.of(journal.rows())
        return Recorder(one, sweep, device="").is_done(epochs, known[id(journal)])

    return [is_done(one) for one in prepared]


def in_mlflow(config: Config) -> bool:
    """True where MLflow has all rows of a job's experiment, or is asked for none of them."""
    journal = Journal.of(config.runs_dir, config.name)
    sender = Sender(journal, experiment=config.name, settings=config.tracking, runs_dir=config.runs_dir)
    return not config.tracking.enabled or sender.has_all()


def noted(rows: Sequence[Row], files: Iterable[Path]) -> bool:
    """True where a journal names these files of a report behind the last number it has: they are those of all its numbers.

    A command that ended while it drew, or that was asked for no figures, has named none, or others.

    Args:
        rows: of the journal.
        files: of the report.
    """
    wanted = {str(path.absolute()) for path in files}
    for row in reversed(rows):
        if row["kind"] == "files" and row["run"] is None:
            return wanted <= set(row["paths"])
        if row["kind"] in ("record", "end", "export"):
            return False
    return False


def numbers_in(folder: Path) -> dict[Path, str]:
    """File -> hash, of the tables in a folder of results, but for that of the jobs, which name their sweep.

    Figures, and the page with them, are other bytes each time that they are drawn.
    """
    return {path: hash_file(path) for path in folder.glob("*.csv") if path.name != JOBS_TABLE}
