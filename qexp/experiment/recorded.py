"""What the journal of an experiment has of its runs, and which variants need no look any more: measured, written down and closed.

A repeated sweep asks for what is there. So a run is opened again only where a number of it is missing, or where it is called or
described otherwise than it was; what its numbers were measured with, its tags and artifacts say already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qexp.experiment.rows import Described
from qexp.experiment.variants import Variant
from qexp.tracking.rows import Row

RECORD = ("run", "variant_key", "epoch", "time_ms")  # the time tells a training that was done afresh, maybe under another name
LARGE = ("config.json", "plan.json")  # artifacts that say what was asked for when the numbers were measured


@dataclass
class Recorded:
    """The runs and records of a journal.

    Args:
        runs: by key, as last opened.
        finished: keys of those that ended well since.
        records: `RECORD` of each -> the label that was typed for it, as last written down; empty where none was.
    """

    runs: dict[str, Row] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    records: dict[tuple[Any, ...], str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Recorded:
        """What is in these rows, oldest first."""
        recorded = cls()
        for row in rows:
            kind = row["kind"]
            if kind == "record":
                recorded.records[tuple(row[name] for name in RECORD)] = (row.get("named") or {}).get("given", "")
            elif kind == "run":
                recorded.runs[row["run"]] = row
                recorded.finished.discard(row["run"])
            elif kind == "end":
                (recorded.finished.add if row["status"] == "FINISHED" else recorded.finished.discard)(row["run"])
        return recorded

    def has_run(self, run: str, described: Described) -> bool:
        """True where a run ended well and was last opened under the same description.

        Args:
            run: its key.
            described: of `qexp.experiment.rows.described`.
        """
        row = self.runs.get(run)
        if row is None or run not in self.finished:
            return False
        texts = {name: text for name, text in row["artifacts"].items() if name not in LARGE}
        return dict(described) == {**{name: row.get(name) for name in described}, "artifacts": texts}

    def has_record(self, run: str, variant: Variant, row: Mapping[str, Any]) -> bool:
        """True where a stored evaluation of a variant is in the journal, under the label that is typed for it now.

        Args:
            run: its key.
            variant: of that run.
            row: as stored.
        """
        return self.records.get((run, variant.key, row["epoch"], row["time_ms"])) == variant.named.given
