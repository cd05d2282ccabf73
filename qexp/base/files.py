"""Files that survive a crash, and hashes that name content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from qexp.base.faults import fault_point
from qexp.base.text import without_passwords

_REMEDIES = {
    errno.ENOSPC: "Free space on that disk",
    errno.EDQUOT: "Free space or have your quota raised",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f) or free space",
    errno.EROFS: "Have that disk mounted for writing",
    errno.EACCES: "Make that folder writable",
}
_PROBE_BYTES = 1 << 20


class SaveError(OSError):
    """A file that could not be saved, whatever the library that wrote it raised; an earlier version of it is intact.

    Args:
        path: the file.
        error: as the system raised it.

    >>> print(SaveError(Path("last.pt"), OSError(errno.ENOSPC, "No space left on device")))
    last.pt could not be saved: No space left on device. What was saved before is intact. Free space on that disk and run the \
same command again: it goes on from there.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(path))

    def __str__(self) -> str:
        remedy = _REMEDIES.get(self.errno or 0, "Mend that")
        again = "run the same command again: it goes on from there."
        return f"{self.filename} could not be saved: {self.strerror}. What was saved before is intact. {remedy} and {again}"

    def __reduce__(self) -> tuple[object, ...]:
        return SaveError, (Path(self.filename), OSError(self.errno, self.strerror))


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash_json(value: object, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def hash_file(path: Path, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of the file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()[:length]


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then fsync it and rename it to `path`.

    A reader sees the old file or the new one, never a part; after a crash the old one is still there.

    Raises:
        SaveError: the system refused (a full disk, a quota, no permission); no part of the new file is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        fault_point("file.written")
        with open(partial, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
        fault_point("file.renamed")
        fsync_folder(path.parent)
    except BaseException as error:
        refusal = _refusal(error, partial) if isinstance(error, Exception) else None
        with contextlib.suppress(OSError):
            partial.unlink()
        if refusal is None:
            raise
        raise SaveError(path, refusal) from error


def _refusal(error: Exception, partial: Path) -> OSError | None:
    """The system's error behind a failed write, or None where it was not the system that failed.

    safetensors has the reason in its text. torch raises a RuntimeError without it: the reason is then found by writing on where
    the file ends.
    """
    if isinstance(error, OSError):
        return error
    if match := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(match[1]), os.strerror(int(match[1])))
    try:
        with open(partial, "ab", buffering=0) as handle:
            write_all(handle, bytes(_PROBE_BYTES))
            os.fsync(handle.fileno())
    except OSError as refusal:
        return refusal
    return None


def write_all(handle: io.FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, which may take it in parts; a buffered one would try again when it is closed."""
    rest = memoryview(data)
    while rest:
        rest = rest[handle.write(rest) :]


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_atomic` for text, without the passwords of URIs in it."""
    write_atomic(path, lambda partial: partial.write_text(without_passwords(text), encoding="utf-8"))
