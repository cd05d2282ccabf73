"""The union of files of rows, as a function of what is in them: the same bytes in whichever order they are given, and once more.

Rows are put together to units, which keep their order within: an evaluation, and the rows that repeat it with other alarms. Of
each unit the longest form counts, which is the latest. Units are ordered by when they were written: their own time, or that of
the opening of their run where they are older (a record that another experiment measured before). What is written in the same
millisecond keeps the order of its file.

Rejected: to append the files one behind the other, which makes the order of the sources that of the rows; and to sort rows by
their time alone, which puts records that were reused before their run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qexp.tracking.record import JOINED
from qexp.tracking.rows import Row

Key = tuple[Hashable, ...]
IDENTITY = ("run", "variant_key", "epoch", "split", "n")  # of a measurement: which of two rows the later one replaces
METRICS = ("prec1", "prec5", "loss", "delta_prec1", "kl", "logit_sqnr_db")
NUMBERS = (*METRICS, "size_bytes", "plan_hash", "data_hash", "digest")
# What happens in one millisecond, in the order in which a sweep writes it; jobs by their state.
_RANKS = {"sweep": 2, "run": 3, "metrics": 5, "record": 6, "export": 7, "model": 8, "files": 9, "end": 10, "job": 11}
_JOB_RANKS = {"planned": 0, "running": 1}


@dataclass(frozen=True, eq=False)
class Unit:
    """Rows that belong together.

    Args:
        key: what tells it.
        rows: in their order.
        lines: the same as they are written.
    """

    key: Key
    rows: tuple[Row, ...]
    lines: tuple[str, ...]

    def with_row(self, row: Row) -> Unit:
        """The unit with a row behind its others."""
        return replace(self, rows=(*self.rows, row), lines=(*self.lines, line_of(row)))


def line_of(row: Mapping[str, object]) -> str:
    """A row as `Journal.append` writes it."""
    return json.dumps(row, separators=(",", ":"))


def is_measured(row: Row) -> bool:
    """True for an evaluation: a record of a journal, or a row of `variants/<key>.jsonl`."""
    return row.get("kind", "record") == "record" and "epoch" in row and "variant_key" in row


def time_of(row: Row) -> int:
    """When it was written, in milliseconds since 1970; 0 for a row of a kind that is not known here and has none."""
    return int(row.get("time_ms", 0))


def identity_of(row: Row) -> Key:
    """What an evaluation measured; of two rows with the same identity the later one counts."""
    return tuple(row.get(name) for name in IDENTITY)


def journal_key(row: Row, line: str) -> Key:
    """Evaluations by what they measured and when, other rows by all that they say."""
    return (*identity_of(row), time_of(row)) if is_measured(row) else (line,)


def keyed_key(row: Row, line: str) -> Key:
    """Of the numbers of an analysis, which have no time: by what they are of."""
    return (row["kind"], row["key"])


def units_of(rows: Iterable[Row], key_of: Callable[[Row, str], Key]) -> dict[Key, Unit]:
    """The units of one file, in the order of their first rows."""
    together: dict[Key, tuple[list[Row], list[str]]] = {}
    for row in rows:
        line = line_of(row)
        part = together.setdefault(key_of(row, line), ([], []))
        part[0].append(row)
        part[1].append(line)
    return {key: Unit(key, tuple(part[0]), tuple(part[1])) for key, part in together.items()}


def union(files: Sequence[Mapping[Key, Unit]]) -> dict[Key, Unit]:
    """Each unit in its longest form; of two that went apart the one whose text is greater, whichever file it is from."""
    merged: dict[Key, Unit] = {}
    for units in files:
        for key, unit in units.items():
            known = merged.get(key)
            if known is None or (len(unit.lines), unit.lines) > (len(known.lines), known.lines):
                merged[key] = unit
    return merged


def merge_rows(files: Sequence[Mapping[Key, Unit]]) -> list[str]:
    """The lines of the union of files whose rows have a time: journals, evaluations and measurements of exported files.

    Evaluations that are equal but for their time are kept once, as the latest; where the last evaluation of several with the same
    numbers lacks a metric that an earlier one has, it is repeated with it.

    Args:
        files: of `units_of`, by `journal_key`.
    """
    merged = union(files)
    for key in _repeated(merged.values()):
        del merged[key]
    moments = _moments(merged.values())
    order = _ordinals(files, merged, moments)
    ordered = sorted(merged.values(), key=lambda unit: (moments[unit.key], order[unit.key], unit.lines))
    return [line for unit in _completed(ordered) for line in unit.lines]


def merge_keyed(files: Sequence[Mapping[Key, Unit]]) -> list[str]:
    """The lines of the union of files whose rows have no time, by kind and key; of several the first file's."""
    merged = {key: unit for units in reversed(files) for key, unit in units.items()}
    return [line for _, unit in sorted(merged.items(), key=lambda item: repr(item[0])) for line in unit.lines]


def _repeated(units: Iterable[Unit]) -> list[Key]:
    """The units that a later one repeats in all but its time."""
    latest: dict[tuple[str, Key], Unit] = {}
    repeated = []
    measured = [unit for unit in units if is_measured(unit.rows[0])]
    for unit in sorted(measured, key=lambda unit: -time_of(unit.rows[0])):
        said = line_of({name: value for name, value in unit.rows[0].items() if name != "time_ms"})
        later = latest.setdefault((said, identity_of(unit.rows[0])), unit)
        if later is not unit and len(unit.rows) == 1:
            repeated.append(unit.key)
    return repeated


def _moments(units: Iterable[Unit]) -> dict[Key, tuple[int, int]]:
    """When each unit was written, as far as rows tell, and its place among what was written in the same millisecond."""
    units = list(units)
    opened: dict[str, int] = {}
    for unit in units:
        row = unit.rows[0]
        if row.get("kind") == "run":
            opened[row["run"]] = min(opened.get(row["run"], time_of(row)), time_of(row))
    moments = {}
    for unit in units:
        row = unit.rows[0]
        since = opened.get(str(row.get("run")), 0) if row.get("kind") != "run" else 0
        moments[unit.key] = (max(time_of(row), since), _rank(row))
    return moments


def _rank(row: Row) -> int:
    kind = row.get("kind", "record")
    if kind == "job":
        return _JOB_RANKS.get(row["state"], _RANKS["job"])
    return _RANKS.get(kind, _RANKS["files"]) + (kind == "run" and row["parent"] is not None)


def _ordinals(
    files: Sequence[Mapping[Key, Unit]], merged: Mapping[Key, Unit], moments: Mapping[Key, tuple[int, int]]
) -> dict[Key, int]:
    """The place of each unit among those of its moment, in the file where it comes first."""
    order: dict[Key, int] = {}
    for units in files:
        seen: Counter[tuple[int, int]] = Counter()
        for key in units:
            if key in merged:
                order[key] = min(order.get(key, seen[moments[key]]), seen[moments[key]])
                seen[moments[key]] += 1
    return order


def _completed(units: Sequence[Unit]) -> list[Unit]:
    """The units, the last one of each measurement with the metrics that others with the same numbers have."""
    of_identity: dict[Key, list[int]] = {}
    for number, unit in enumerate(units):
        if is_measured(unit.rows[0]):
            of_identity.setdefault(identity_of(unit.rows[0]), []).append(number)
    completed = list(units)
    for numbers in of_identity.values():
        last = units[numbers[-1]].rows[-1]
        same = [units[number].rows[-1] for number in numbers if numbers_of(units[number].rows[-1]) == numbers_of(last)]
        joined = {name: {key: value for row in same for key, value in row.get(name, {}).items()} for name in JOINED}
        if any(joined[name].keys() - last.get(name, {}).keys() for name in JOINED):
            more = {name: dict(sorted(values.items())) for name, values in joined.items() if values}
            completed[numbers[-1]] = units[numbers[-1]].with_row(last | more)
    return completed


def numbers_of(row: Row) -> dict[str, str]:
    """The numbers that an evaluation gave, as texts, in which an undefined one equals itself."""
    return {name: repr(row.get(name)) for name in NUMBERS}
