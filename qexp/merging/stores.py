"""What `from` and `into` name, and the locks that keep others from working there meanwhile.

A source is read and never written to. Its locks are taken by handles that cannot write, shared, so that several merges may read
one store; a training that a process works on is refused, since its files belong together only between two epochs. Rejected: to
read beside a process at work, and to let the next merge fetch the rest: weights, log and resume state would be of three moments.
A journal is appended to outside these locks; of it whole rows are read, and later ones come with the next merge.
"""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from qexp.base.errors import UserError, UserErrors
from qexp.base.files import names_in

RUNS, RESULTS = "runs", "results"  # of a folder that holds both
LOCKS = ".locks"
_OF_RUNS = ("journal", "trainings", "checkpoints")  # by which a folder of runs is known
_OF_RESULTS = ("report.html", "table.csv", "jobs.csv", "layers.csv", "sensitivity.csv")  # in a folder of an experiment
_SPARE_FILES = 256  # that a process has open beside locks


@dataclass(frozen=True)
class Store:
    """What one machine has written.

    Args:
        name: as it was typed, for messages.
        runs: `runs_dir`; None where only results are there.
        results: `results_dir`; None where only runs are there.
    """

    name: str
    runs: Path | None
    results: Path | None


def source_of(text: str) -> Store:
    """The store that an entry of `from` names: a folder with `runs/`, `results/` or both, or one of these itself.

    Raises:
        UserError: it is none of them.
    """
    folder = Path(text).expanduser()
    runs, results = folder / RUNS, folder / RESULTS
    if _is_runs(runs) or _is_results(results):
        return Store(text, runs if _is_runs(runs) else None, results if _is_results(results) else None)
    if _is_runs(folder):
        return Store(text, folder, None)
    if _is_results(folder):
        return Store(text, None, folder)
    remedy = "runs/ holds journal/ and trainings/ or checkpoints/; results/ a folder for each experiment."
    missing = "" if folder.is_dir() else "There is no such folder. "
    raise UserError("from", text, allowed="a folder that holds runs/ or results/, or one of these", remedy=missing + remedy)


def target_of(text: str) -> Store:
    """The store that `into` names: `runs/` and `results/` of that folder, there or not.

    Raises:
        UserError: it is itself a folder of runs or results, or a file.
    """
    folder = Path(text).expanduser()
    if _is_runs(folder) or _is_results(folder):
        remedy = f"Name the folder above it: into={folder.parent}"
        raise UserError("into", text, allowed="a folder that holds runs/ and results/, or will", remedy=remedy)
    if folder.exists() and not folder.is_dir():
        raise UserError("into", text, allowed="a folder", remedy="There is a file of that name.")
    return Store(text, folder / RUNS, folder / RESULTS)


def check_apart(sources: Sequence[Store], into: Store) -> None:
    """Raise UserErrors for a folder that is named twice, or lies within another."""
    errors = []
    folders = [(store.name, path.resolve()) for store in sources for path in (store.runs, store.results) if path is not None]
    own = [path.resolve() for path in (into.runs, into.results) if path is not None]
    for number, (name, path) in enumerate(folders):
        if any(path == other for _, other in folders[:number]):
            errors.append(UserError("from", name, allowed="folders that are named once"))
        if any(path.is_relative_to(other) or other.is_relative_to(path) for other in own):
            remedy = f"What {into.name} holds stays and is part of the union: leave it out of from."
            errors.append(UserError("from", name, allowed="a folder apart from into", remedy=remedy))
    if errors:
        raise UserErrors(errors)


@contextmanager
def reading(sources: Iterable[Store]) -> Iterator[None]:
    """Keep processes from beginning on what is read; within, none works there.

    Raises:
        UserError: one does.
    """
    with ExitStack() as stack:
        for store in sources:
            folder = None if store.runs is None else store.runs / LOCKS
            names = [name for name in names_in(folder) if name.endswith(".lock")] if folder is not None else []
            _allow_files(stack, len(names))
            for name in names:
                assert folder is not None
                _hold(stack, folder / name, os.O_RDONLY, fcntl.LOCK_SH, "from", store.name)
        yield


@contextmanager
def writing(into: Store, hashes: Iterable[str]) -> Iterator[None]:
    """Be the only process that works on the store that is written.

    Args:
        into: the store.
        hashes: of trainings and checkpoints that will be written there.

    Raises:
        UserError: a process works there, or another merge does.
    """
    assert into.runs is not None
    folder = into.runs / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    names = {"merge.lock", *(name for name in names_in(folder) if name.endswith(".lock")), *(f"{one}.lock" for one in hashes)}
    with ExitStack() as stack:
        _allow_files(stack, len(names))
        for name in sorted(names):
            _hold(stack, folder / name, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, "into", into.name)
        yield


def _hold(stack: ExitStack, path: Path, flags: int, kind: int, key: str, store: str) -> None:
    """Take one lock, as filelock does, until the stack ends."""
    handle = os.open(path, flags, 0o666)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        who = "another merge writes to it" if path.stem == "merge" else f"a process works on training {path.stem}"
        remedy = f"There {who}: give the command again when that has ended."
        raise UserError(key, store, allowed="a store that no process works on", remedy=remedy) from None


def _allow_files(stack: ExitStack, count: int) -> None:
    """Let this process have so many more files open than it has by default, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = soft + count + _SPARE_FILES
    wanted = limit if hard == resource.RLIM_INFINITY else min(hard, limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


def _is_runs(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in _OF_RUNS)


def _is_results(folder: Path) -> bool:
    return any((folder / name / file).is_file() for name in _folders(folder) for file in _OF_RESULTS)


def _folders(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if (folder / name).is_dir()] if folder.is_dir() else []
