"""Stored trainings: python -m qexp.trainings lists them.

python -m qexp.trainings remove=HASH[,HASH]      deletes these (any unique beginning of a hash will do)
python -m qexp.trainings remove=incomplete|all   deletes what was left unfinished, or everything

Keys: remove, runs_dir=runs. Records in the journal stay: reports keep their numbers, but new variants need a new training.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.base.console import print_result
from qexp.base.errors import UserError, nearest
from qexp.base.keyvalue import run_verb
from qexp.base.table import Column, Table, lines

COLUMNS = (
    Column(name="hash", title="training", kind="text"),
    Column(name="model", title="model", kind="text"),
    Column(name="data", title="data", kind="text"),
    Column(name="method", title="method", kind="text"),
    Column(name="epochs", title="epochs", kind="count", form=str, value=lambda row: f"{row['epochs_done']}/{row['epochs']}"),
    Column(name="size_mib", title="MiB", kind="size", form=".1f"),
    Column(name="created", title="created", kind="text"),
    Column(name="status", title="status", kind="text"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingsSettings:
    """What `qexp.trainings` takes.

    Args:
        remove: hashes, `incomplete` or `all`; None lists what is stored.
        runs_dir: where trainings lie.
    """

    remove: str | None = None
    runs_dir: str = "runs"


def run(settings: TrainingsSettings) -> None:
    """List the store, or delete from it."""
    from qexp.engine.trajectory import TrajectoryStore

    store = TrajectoryStore(Path(settings.runs_dir))
    rows = store.summaries()
    if settings.remove is not None:
        removed: list[Mapping[str, Any]] = []
        wanted = _choose(settings.remove, rows)
        try:
            for chosen in wanted:
                store.remove(chosen["hash"])
                removed.append(chosen)
        finally:  # what was removed before another could not be
            texts = [f"removed {chosen['hash']}  {chosen['size_mib']:.1f} MiB" for chosen in removed]
            print_result(*texts, removed=[chosen["hash"] for chosen in removed], folder=store.root)
        return
    texts = [*lines(Table.of(COLUMNS, rows)), f"{len(rows)} stored in {store.root}"]
    print_result(*texts, trainings=rows, folder=store.root)


def _choose(wanted: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The stored trainings that `remove` names."""
    if wanted in ("all", "incomplete"):
        return [row for row in rows if wanted == "all" or row["status"] != "done"]
    chosen: list[Mapping[str, Any]] = []
    for beginning in wanted.split(","):
        matches = [row for row in rows if beginning and row["hash"].startswith(beginning)]
        if len(matches) != 1:
            hashes = [row["hash"] for row in rows]
            allowed = "the beginning of exactly one stored hash" if matches else "a stored hash, incomplete or all"
            raise UserError("remove", beginning, allowed=allowed, remedy=nearest(beginning, hashes))
        chosen += [row for row in matches if row not in chosen]
    return chosen


if __name__ == "__main__":
    sys.exit(run_verb(TrainingsSettings, run, __doc__))
