"""Where an experiment's journal lies and how its rows are read.

Tracking writes journals and reporting reads them; neither may import the other, so what they share is here. A row is one JSON
object on one line. Non-finite numbers are written as Python's `json` writes them (`NaN`, `Infinity`): a network with non-finite
logits has such a loss, and a null would hide it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qexp.base.errors import UserError, nearest

CONVERTED = "converted.safetensors"  # what becomes of a quantization-aware training, beside its epochs; reports know it by name


def journal_path(runs_dir: str | Path, name: str) -> Path:
    """The journal of experiment `name`."""
    return Path(runs_dir) / "journal" / f"{name}.jsonl"


def journal_names(runs_dir: str | Path) -> list[str]:
    """The experiments that have a journal, sorted."""
    return sorted(path.stem for path in (Path(runs_dir) / "journal").glob("*.jsonl"))


def find_journal(runs_dir: str | Path, name: str) -> Path:
    """The journal of an experiment that must exist.

    Raises:
        UserError: no such experiment; it lists those there are.
    """
    known = journal_names(runs_dir)
    if name in known:
        return journal_path(runs_dir, name)
    remedy = nearest(name, known) if known else "Run python -m qexp.train first."
    raise UserError("name", name, allowed=known or f"an experiment with a journal in {Path(runs_dir) / 'journal'}", remedy=remedy)


def read_rows(
    path: Path, offset: int = 0, *, limit: int | None = None, end: int | None = None
) -> tuple[list[dict[str, Any]], int]:
    """The rows that begin at byte `offset`, and the offset after the last of them.

    A last line without its newline was torn by a crash or is still being written: it is left for a later call.

    Args:
        path: the journal; a missing file has no rows.
        offset: 0, or what an earlier call returned.
        limit: at most so many rows.
        end: only rows that begin before this offset.

    Raises:
        UserError: a complete line that is no JSON object, with its byte offset.
    """
    rows: list[dict[str, Any]] = []
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
            rows.append(_parse(path, offset, line))
            offset += len(line)
    return rows, offset


def _parse(path: Path, offset: int, line: bytes) -> dict[str, Any]:
    """One line as a row."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        remedy = "The file was changed by something other than qexp; remove that line."
        raise UserError("journal", path, allowed=f"one JSON object per line; at byte {offset} there is none", remedy=remedy)
    return row
