"""Where two stores say different things of one measurement: what may not become one.

Equal measurements have equal names, so their numbers must be equal. Two processors or libraries round the logits of one network
otherwise; where both stores say what they computed on, and it differs, metrics need only agree as `qexp.tracking.rounding` asks,
and both evaluations stay: the later one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from qexp.merging.units import METRICS, NUMBERS, Key, Unit, identity_of, is_measured
from qexp.tracking.rounding import same_circumstances, values_within_rounding, within_rounding
from qexp.tracking.rows import Row

Circumstances = Mapping[str, Any]
_SHOWN = 80  # characters of the values of an analysis


@dataclass(frozen=True)
class Conflict:
    """One thing of which two stores differ.

    Args:
        what: the thing, in words.
        first: the name of a store, and what it says.
        second: the same of the other.
    """

    what: str
    first: tuple[str, str]
    second: tuple[str, str]

    def __str__(self) -> str:
        (here, this), (there, that) = self.first, self.second
        return f"{self.what}: {this} in {here}, {that} in {there}"


@dataclass(frozen=True)
class RowFile:
    """A file of rows of one store.

    Args:
        store: its name.
        units: the rows.
        circumstances: what a row of it was computed on; None where that is not known.
    """

    store: str
    units: Mapping[Key, Unit]
    circumstances: Callable[[Row], Circumstances | None]


Said = tuple[RowFile, Row]  # by which file, and what


def measured_conflicts(files: Iterable[RowFile], where: str) -> list[Conflict]:
    """Evaluations that gave other numbers in another store; of a file the last row of each measurement counts.

    Args:
        files: of the same thing.
        where: what it is, in words.
    """
    conflicts = []
    last_of: dict[Key, list[Said]] = {}
    for file in files:
        last = {identity_of(row): row for unit in file.units.values() for row in unit.rows if is_measured(row)}
        for identity, row in last.items():
            last_of.setdefault(identity, []).append((file, row))
    for (here, one), (there, other) in _pairs(last_of):
        names = _differing(one, other)
        if names and not _is_rounding(names, one, other, here.circumstances(one), there.circumstances(other)):
            shown = [", ".join(f"{name} {_value(row, name)}" for name in names[:3]) for row in (one, other)]
            what = f"{where}, {one['variant']} ({one['variant_key']}) after epoch {one['epoch']}"
            conflicts.append(Conflict(what, (here.store, shown[0]), (there.store, shown[1])))
    return conflicts


def keyed_conflicts(files: Iterable[RowFile], where: str) -> list[Conflict]:
    """Numbers of an analysis that are others in another store, by more than another processor or library explains.

    Args:
        files: of one checkpoint, by `units.keyed_key`.
        where: what it is, in words.
    """
    conflicts = []
    last_of: dict[Key, list[Said]] = {}
    for file in files:
        for key, unit in file.units.items():
            last_of.setdefault(key, []).append((file, unit.rows[-1]))
    for (here, one), (there, other) in _pairs(last_of):
        shown = [repr(row["values"]) for row in (one, other)]
        is_elsewhere = _unlike(here.circumstances(one), there.circumstances(other))
        if shown[0] != shown[1] and not (is_elsewhere and values_within_rounding(one["values"], other["values"])):
            what = f"{where}, {one['kind']} {one['key']}"
            conflicts.append(Conflict(what, (here.store, shown[0][:_SHOWN]), (there.store, shown[1][:_SHOWN])))
    return conflicts


def _pairs(rows_of: Mapping[Key, Sequence[Said]]) -> Iterator[tuple[Said, Said]]:
    """What any two stores say of one thing."""
    for rows in rows_of.values():
        yield from combinations(rows, 2)


def _differing(one: Row, other: Row) -> list[str]:
    """The numbers that both have, computed by the same code, and that differ."""
    names = [name for name in NUMBERS if name in one and name in other and repr(one[name]) != repr(other[name])]
    extra, more = one.get("extra", {}), other.get("extra", {})
    sources, code = one.get("sources", {}), other.get("sources", {})
    same_code = [name for name in extra if name in more and sources.get(name) == code.get(name)]
    return names + [name for name in same_code if repr(extra[name]) != repr(more[name])]


def _value(row: Row, name: str) -> object:
    return row[name] if name in row else row["extra"][name]


def _is_rounding(names: list[str], one: Row, other: Row, then: Circumstances | None, now: Circumstances | None) -> bool:
    """True where another processor or library explains that these numbers differ."""
    exact = {name for name in NUMBERS if name not in (*METRICS, "digest")}
    return _unlike(then, now) and not exact & {*names} and within_rounding(one, other, one["n"])


def _unlike(then: Circumstances | None, now: Circumstances | None) -> bool:
    """True where both are known, and last bits may differ between them."""
    return then is not None and now is not None and not same_circumstances(then, now)
