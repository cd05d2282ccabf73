"""What a merge will write: one entry a file, in the order in which they may appear."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qexp.base.files import hash_file
from qexp.merging.conflicts import Conflict
from qexp.merging.stores import Store

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Write:
    """A file of the merged store.

    Args:
        path: relative to `runs/` or `results/` of `into`.
        content: the file that it is a copy of, its bytes, or None where it must not be there.
    """

    path: Path
    content: Path | bytes | None


@dataclass(frozen=True)
class PlannedJournal:
    """An experiment's journal as it will be.

    Args:
        name: experiment.
        content: the file.
        size_before: bytes of the one in `into`, of which it is made; 0 where there is none.
        num_records: in it.
    """

    name: str
    content: bytes
    size_before: int
    num_records: int


@dataclass
class Plan:
    """All that is written, and why nothing is.

    Args:
        removed: exported files of another network than those that are written, which go before anything is written.
        runs: files of `runs/`, in the order in which they are written: a training is complete once its last one is.
        results: files of `results/`.
        conflicts: what stores disagree on; with any, nothing is written.
        hashes: of the trainings and checkpoints among them.
        journals: of the experiments, written behind the other files of runs.
        left_out: what differs and is made again: files of results, folders of exported files.
        num_evaluations: different rows of evaluations.
    """

    removed: list[Write] = field(default_factory=list)
    runs: list[Write] = field(default_factory=list)
    results: list[Write] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    journals: list[PlannedJournal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    num_evaluations: int = 0


Copies = list[tuple[Store, Path]]  # the stores that have a file or folder, and where


def same_bytes(copies: Copies) -> bool:
    """True where all files are equal."""
    (_, first), *others = copies
    return all(equal_files(first, other) for _, other in others)


def equal_files(one: Path, other: Path) -> bool:
    """True where two files hold the same bytes."""
    with open(one, "rb", buffering=0) as here, open(other, "rb", buffering=0) as there:
        if os.fstat(here.fileno()).st_size != os.fstat(there.fileno()).st_size:
            return False
        while block := here.read(_BLOCK):
            if block != there.read(_BLOCK):
                return False
    return True


def take_equal(plan: Plan, writes: list[Write], path: Path, copies: Copies, what: str) -> None:
    """Plan a file that must be the same wherever it is.

    Args:
        plan: gets the conflict.
        writes: get the file.
        path: of the file in its folder of `into`.
        copies: where it is.
        what: its name in a conflict.
    """
    if same_bytes(copies):
        writes.append(Write(path, copies[0][1]))
        return
    (here, one), *others = copies
    there, other = next(copy for copy in others if not equal_files(one, copy[1]))
    shown = [f"{file.stat().st_size} bytes of hash {hash_file(file)}" for file in (one, other)]
    plan.conflicts.append(Conflict(what, (here.name, shown[0]), (there.name, shown[1])))


def files_below(copies: Copies) -> dict[Path, Copies]:
    """Relative path -> where it is, of the files in the folders of several stores, sorted; hidden ones are no content."""
    below: dict[Path, Copies] = {}
    for store, folder in copies:
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(place)
            relative = inside.relative_to(folder)
            for name in names:
                if not name.startswith("."):
                    below.setdefault(relative / name, []).append((store, inside / name))
    return dict(sorted(below.items()))


def stores_with(stores: Sequence[Store], path: Path) -> Copies:
    """The stores whose runs have a file or folder."""
    return [(store, store.runs / path) for store in stores if store.runs is not None and (store.runs / path).exists()]
