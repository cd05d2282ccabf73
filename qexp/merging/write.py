"""Many files at once, each of which appears whole or not at all.

Rejected: `write_atomic` for each, which waits for the disk twice a file: of the thousands of small files of a store that is most
of the time. Here all are written beside their places first, then the disk is waited for once, then they are renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from qexp.base.faults import fault_point
from qexp.base.files import SaveError, fsync_folder
from qexp.merging.plan import Write, equal_files


def write_files(folder: Path, writes: Sequence[Write]) -> int:
    """Bring files into a folder, in their order; those that are there are left alone.

    Args:
        folder: it and the folders below are made where they are missing.
        writes: what is wanted.

    Returns:
        How many were written or removed.

    Raises:
        SaveError: the system refused (a full disk); no part of a file is left.
    """
    staged: list[tuple[Path, Path]] = []  # what was written, and its place
    removed = [path for write in writes if write.content is None and (path := folder / write.path).exists()]
    target = folder
    try:
        for write in writes:
            target = folder / write.path
            if write.content is None or _is_there(target, write.content):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")
            staged.append((partial, target))
            _fill(partial, write.content)
            fault_point("merge.staged")
        if staged:
            os.sync()
        for partial, target in staged:
            os.replace(partial, target)
            fault_point("merge.renamed")
        for target in removed:
            target.unlink()
        for place in {path.parent for _, path in staged}:
            fsync_folder(place)
    except OSError as error:
        for partial, _ in staged:
            with contextlib.suppress(OSError):
                partial.unlink()
        raise SaveError(target, error) from error
    return len(staged) + len(removed)


def _is_there(target: Path, content: Path | bytes) -> bool:
    """True where the file holds that already."""
    if not target.is_file():
        return False
    if isinstance(content, bytes):
        return target.read_bytes() == content
    return target == content or equal_files(target, content)


def _fill(partial: Path, content: Path | bytes) -> None:
    """Write a new file, of the mode that the umask gives."""
    with open(partial, "xb") as handle:
        if isinstance(content, bytes):
            handle.write(content)
            return
        with open(content, "rb") as source:
            shutil.copyfileobj(source, handle, 1 << 20)
