"""What rows of a journal change in MLflow, given the rows before them: no input or output, no mlflow.

A point is sent where its value differs from the last one of the same (run, metric, step), at the time of its row. So a reused
record changes nothing, a training that was done afresh adds its new values, and the points are a function of the journal alone,
whoever sends them and however often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from qexp.config.correct import CORRECTIONS
from qexp.config.metrics import ALWAYS, restored
from qexp.tracking.record import METRICS_FILE, outcomes_of
from qexp.tracking.rows import Row


class Point(NamedTuple):
    """One value of a metric; `copy` is the `record` row of a copy that is kept, which it is a metric of too."""

    name: str
    value: float
    step: int
    time_ms: int
    copy: Row | None = None


@dataclass
class Changes:
    """What to do in MLflow, in the order of the fields.

    Args:
        opens: `run` rows, oldest first.
        points: by run key.
        tags: by run key.
        texts: by run key, file name -> text.
        files: by run key, paths to store with it.
        models: `model` rows, oldest first.
        ends: by run key, the `end` row of a run that is not opened again after it.
    """

    opens: list[Row] = field(default_factory=list)
    points: dict[str, list[Point]] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    models: list[Row] = field(default_factory=list)
    ends: dict[str, Row] = field(default_factory=dict)


class ChangeTracker:
    """Reads a journal's rows in their order and returns what each part of them changes.

    `last_ms` has the time of every run's last row.
    """

    def __init__(self) -> None:
        self.last_ms: dict[str, int] = {}
        self._trainings: dict[str, None] = {}  # in the order of their first row
        self._points: dict[tuple[str, str, int], str] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._ended_ms: dict[str, int] = {}  # when a run ended that has measured nothing since
        self._sent = {row.name: row.to_mlflow for row in ALWAYS}

    def take(self, rows: Iterable[Row]) -> Changes:
        """Note the next rows and return what they change."""
        changes = Changes()
        for row in rows:
            kind = row["kind"]
            if kind == "run":
                self._open(row, changes)
            elif kind == "record":
                self._take_points(row, row["epoch"], self._record_values(row), changes)
                self._take_texts(row, changes)
            elif kind == "metrics":
                self._take_points(row, row["step"], row["values"], changes)
            elif kind == "end":
                changes.ends[row["run"]] = self._end(row)
            elif kind == "files":
                for run in [row["run"]] if row["run"] is not None else self._trainings:
                    changes.files[run] = row["paths"]
            elif kind == "model":
                changes.models.append(row)
            if row.get("run") is not None:
                self.last_ms[row["run"]] = row["time_ms"]
        return changes

    def _open(self, row: Row, changes: Changes) -> None:
        """A run is opened, perhaps again."""
        run = row["run"]
        changes.opens.append(row)
        changes.ends.pop(run, None)
        if row["parent"] is None:
            self._trainings[run] = None
        self._sent |= {metric.name: metric.to_mlflow for metric in restored(row["artifacts"].get(METRICS_FILE, "[]"))}
        for name, text in row["artifacts"].items():
            if self._is_new(run, f"artifact/{name}", text):
                changes.texts.setdefault(run, {})[name] = text

    def _end(self, row: Row) -> Row:
        """An end stays where it was if the run measured nothing new since: MLflow would count the pause as work."""
        return row | {"time_ms": self._ended_ms.setdefault(row["run"], row["time_ms"])}

    def _take_texts(self, row: Row, changes: Changes) -> None:
        """A tag for the alarms of a record, and one for what its corrections did, where they are not those of the one before."""
        done = [CORRECTIONS[name].sentence(outcome) for name, outcome in outcomes_of(row).items()]
        for name, text in (("alarms", "; ".join(row["alarms"])), ("corrected", "; ".join(done))):
            if text and self._is_new(row["run"], name, text):
                changes.tags.setdefault(row["run"], {})[f"qexp.{name}"] = text

    def _take_points(self, row: Row, step: int, values: Mapping[str, float | None], changes: Changes) -> None:
        """Points that are finite and new. MLflow draws an infinity as 1.8e308; the journal has it, and an alarm says so."""
        run: str = row["run"]
        for name, value in values.items():
            key = (run, name, step)
            if value is None or not math.isfinite(value) or self._points.get(key) == repr(float(value)):
                continue
            self._points[key] = repr(float(value))
            self._ended_ms.pop(run, None)
            kept = row if row["kind"] == "record" and row.get("predictions") else None
            changes.points.setdefault(run, []).append(Point(name, float(value), step, row["time_ms"], kept))

    def _is_new(self, run: str, name: str, text: str) -> bool:
        """Note a text; True if it was another one, or none."""
        if self._texts.get((run, name)) == text:
            return False
        self._texts[run, name] = text
        return True

    def _record_values(self, row: Row) -> dict[str, float | None]:
        """A record's metrics. On another split than `test` they have its name before them: both may belong to one training."""
        prefix, values = "" if row["split"] == "test" else f"{row['split']}/", row | row.get("extra", {})
        return {prefix + name: values.get(name) for name, is_sent in self._sent.items() if is_sent}
