"""The journal: every run, record and metric of an experiment, one JSON object per line, appended and fsynced.

It is the truth; MLflow and the reports are made from it and can be made again. So passwords of URIs are taken out here, when
rows are written, and when they are read, as older versions wrote them down. Rejected: MLflow itself as the only store (a dead
server blocks a training for minutes, asynchronous logging loses points), and SQLite (one more schema, and no `tail -f`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from io import FileIO
from pathlib import Path

from filelock import FileLock

from qexp.base.console import warn_main
from qexp.base.errors import UserError, nearest
from qexp.base.faults import fault_point
from qexp.base.files import SaveError, check_readable, fsync_folder, names_in, write_all
from qexp.base.text import without_passwords
from qexp.tracking.lines import Lines
from qexp.tracking.rows import KEYS, Row


class Journal:
    """An append-only file of rows, shared by the processes of an experiment.

    Args:
        path: the file; it and its folder are made by the first `append`.
        needs: what each row has, beside what its `kind` asks for; one without it is damaged.
    """

    def __init__(self, path: str | Path, needs: Sequence[str] = ()) -> None:
        self.path, self._needs = Path(path), needs

    @classmethod
    def of(cls, runs_dir: str | Path, name: str) -> Journal:
        """The journal of experiment `name`."""
        return cls(journal_path(runs_dir, name), needs=("kind",))

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows, all of them or, if the machine stops meanwhile, the first few; they are on disk when this returns.

        Raises:
            TypeError: a row holds what JSON has no form for; nothing is written.
            SaveError: the system refused (a full disk); at most the first few rows are written, and no part of one.
        """
        data = b"".join(without_passwords(json.dumps(row, separators=(",", ":"))).encode() + b"\n" for row in rows)
        if not data:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
            with lock, open(self.path, "ab+", buffering=0) as handle:
                _append(handle, data)
                if handle.tell() == len(data):
                    fsync_folder(self.path.parent)
        except OSError as error:
            raise SaveError(self.path, error) from error

    def rows(self) -> Iterator[Row]:
        """All complete rows, oldest first."""
        return iter(read_rows(self.path, needs=self._needs)[0])

    def rows_from(self, offset: int, *, limit: int | None = None, end: int | None = None) -> tuple[list[Row], int]:
        """The rows from byte `offset` on (at most `limit`, none at `end` or after), and the offset to go on from."""
        return read_rows(self.path, offset, limit=limit, end=end, needs=self._needs)


class Followed:
    """The rows of a journal, each read once: a later look reads what was appended since.

    Args:
        journal: to read.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._offset = journal, 0
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """All complete rows so far, oldest first; not to be changed."""
        new, self._offset = self._journal.rows_from(self._offset)
        self._rows += new
        return self._rows


def _append(handle: FileIO, data: bytes) -> None:
    """Write `data` at the end and through to the disk. Where it does not fit, whole rows stay: a reader may have seen them."""
    _mend(handle)
    try:
        half = len(data) // 2
        write_all(handle, data[:half])
        fault_point("journal.torn")
        write_all(handle, data[half:])
        fault_point("journal.written")
        os.fsync(handle.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # then the next append does it
            _mend(handle)
        raise


def _mend(handle: FileIO) -> int:
    """Finish or cut off a last line that a crash left without its newline; returns the file's size.

    The line is finished where only the newline is missing. Otherwise its `append` never returned, so no caller relies on it.
    """
    size = handle.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        step = min(1 << 16, start)
        start -= step
        handle.seek(start)
        tail = handle.read(step) + tail
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not torn:
        return size
    try:
        whole = isinstance(json.loads(torn), dict)
    except ValueError:
        whole = False
    if whole:
        handle.seek(0, os.SEEK_END)
        handle.write(b"\n")
        return size + 1
    handle.truncate(size - len(torn))
    handle.seek(0, os.SEEK_END)
    return size - len(torn)


CONVERTED = "converted.safetensors"  # what becomes of a quantization-aware training, beside its epochs; reports know it by name


def journal_path(runs_dir: str | Path, name: str) -> Path:
    """The journal of experiment `name`."""
    return Path(runs_dir) / "journal" / f"{name}.jsonl"


def journal_names(runs_dir: str | Path) -> list[str]:
    """The experiments that have a journal, sorted."""
    names = names_in(Path(runs_dir) / "journal")
    return [name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl") and not name.startswith(".")]


def find_journal(runs_dir: str | Path, name: str) -> Path:
    """The journal of an experiment that must exist.

    Raises:
        UserError: no such experiment; it lists those there are.
    """
    known = journal_names(runs_dir)
    if name in known:
        return journal_path(runs_dir, name)
    if not known:
        remedy = f"It has no journal, of {name} or another. Run python -m qexp.train first."
        raise UserError("runs_dir", runs_dir, allowed="the folder of an experiment's runs", remedy=remedy)
    raise UserError("name", name, allowed=known, remedy=nearest(name, known))


def experiment_rows(name: str, runs_dir: str | Path) -> list[Row]:
    """All whole rows of an experiment's journal.

    Raises:
        UserError: no such experiment, or a file that may not be read.
    """
    find_journal(runs_dir, name)
    return list(Journal.of(runs_dir, name).rows())


def read_rows(
    path: Path, offset: int = 0, *, limit: int | None = None, end: int | None = None, needs: Sequence[str] = ()
) -> tuple[list[Row], int]:
    """The rows that begin at byte `offset`, and the offset after the last of them.

    A complete line that is no whole row is named and left out. A last line without its newline was torn by a crash or is still
    being written: it is left for a later call.

    Args:
        path: the journal; a missing file has no rows.
        offset: 0, or what an earlier call returned.
        limit: at most so many rows.
        end: only rows that begin before this offset.
        needs: of `Journal`.

    Raises:
        UserError: a file that may not be read.
    """
    rows: list[Row] = []
    lines = Lines()
    check_readable(path)
    try:
        handle = open(path, "rb")
    except FileNotFoundError:
        return rows, 0
    with handle:
        handle.seek(offset)
        while (limit is None or len(rows) < limit) and (end is None or offset < end):
            line = handle.readline()
            if not line.endswith(b"\n"):
                break
            row = _parse(line, tuple(needs), lines)
            if row is None:
                _name_damage(path, offset)
            else:
                rows.append(row)
            offset += len(line)
    return rows, offset


def _parse(line: bytes, needs: tuple[str, ...], lines: Lines) -> Row | None:
    """One line as a row, None where it is none or lacks what its readers ask for."""
    try:
        row = lines.parse(without_passwords(line.decode()))
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(kind := row.get("kind", ""), str):
        return None
    return row if row.keys() >= _needed(kind, needs) else None


@cache
def _needed(kind: str, needs: tuple[str, ...]) -> frozenset[str]:
    """What a row of a kind has."""
    return frozenset((*needs, *KEYS.get(kind, ())))


@cache
def _name_damage(path: Path, offset: int) -> None:
    """Say once that a line is left out: one damaged row must not take all others with it."""
    warn_main(
        f"{path}: at byte {offset} there is no whole row; that line is left out. Something other than qexp changed the file."
    )
