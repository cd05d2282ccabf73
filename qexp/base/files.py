"""Files that survive a crash, and hashes that name content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from qexp.base.errors import UserError
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

    A reader sees the old file or the new one, never a part; after a crash the old one is still there. The temporary file is new,
    whatever others put into the folder, and the file has the mode that the umask gives, whatever the library that wrote it gave.

    Raises:
        SaveError: the system refused (a full disk, a quota, no permission); no part of the new file is left.
    """
    partial = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = create_exclusive(partial)
        write(partial)
        os.chmod(partial, mode)  # safetensors puts a file of its own there, for its owner alone
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


def discard_partials(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing; for the only process that may write there."""
    for partial in folder.rglob(".*.tmp"):
        partial.unlink()


def create_exclusive(path: Path) -> int:
    """Make an empty file that was not there, not even as a link; returns the mode that the umask (or the folder's ACL) gives it.

    Rejected: `tempfile.mkstemp`, whose files are for their owner alone, and tell nothing of the umask.
    """
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def check_readable(path: Path) -> None:
    """Raise where something is there that cannot be read: it is not missing, and nothing may be made in its place.

    Raises:
        UserError: another user's file, say. safetensors and torch call it missing.
    """
    try:
        open(path, "rb").close()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unreadable(path, error) from error


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it is missing.

    Raises:
        UserError: it is there and cannot be read. `Path.glob` would call it empty.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    remedy = f"{error.strerror}. It is there, and not made again: have its owner let you read it."
    return UserError("file", path, allowed="what can be read", remedy=remedy)


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


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """`write_atomic` for bytes."""
    write_atomic(path, lambda partial: partial.write_bytes(data))


def write_text_atomic(path: Path, text: str) -> None:
    """`write_atomic` for text, without the passwords of URIs in it."""
    write_atomic(path, lambda partial: partial.write_text(without_passwords(text), encoding="utf-8"))


def write_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files of text; one that would be empty is not there afterwards. Returns those that are.

    Args:
        folder: where they go.
        texts: name of the file -> its text.
    """
    for file, text in texts.items():
        if text:
            write_text_atomic(folder / file, text)
        else:
            (folder / file).unlink(missing_ok=True)
    return [folder / file for file, text in texts.items() if text]
