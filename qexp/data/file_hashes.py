"""Hashes of the content of files, computed once: a file that is where it was, and as it was, is not read again.

What was hashed is kept in the user's cache (`$XDG_CACHE_HOME/qexp`, `~/.cache/qexp`), one text file for each folder of data, to
which processes append. A file is known by path, size, inode and its two times. A change within the last seconds may leave the
times as they were, so that fresh files are not kept. Rejected: a sample of the files, or sizes alone, which miss replaced files.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from qexp.base.console import print_main
from qexp.base.files import hash_file
from qexp.base.progress import track

_LENGTH = 32  # hex digits
_FRESH_S = 2.0  # clocks of file systems tick slowly
_WORTH_A_LINE = 10_000  # files; reading so many takes over two seconds
_CHUNK = 1000  # files between two writes: what is lost if the command is stopped


def content_hashes(root: Path, paths: Sequence[Path], workers: int) -> Iterator[str]:
    """32 hex digits of the SHA-256 of each file's content, in the order of the files.

    Args:
        root: the folder that they lie in.
        paths: the files.
        workers: threads that read.
    """
    cache = _cache_file(root)
    known = _read(cache)
    keys = [_key(path, path.stat()) for path in paths]
    missing = [number for number, key in enumerate(keys) if key not in known]
    if len(missing) >= _WORTH_A_LINE:
        print_main(f"data: reading {len(missing)} files below {root} once, to know them by content")
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in track(range(0, len(missing), _CHUNK), "file to read", total=len(missing), size=lambda _: _CHUNK):
            chunk = missing[start : start + _CHUNK]
            hashes = pool.map(lambda number: hash_file(paths[number], _LENGTH), chunk)
            new = {keys[number]: content for number, content in zip(chunk, hashes, strict=True)}
            known |= new
            append_lines(cache, [f"{new[keys[number]]} {keys[number]}" for number in chunk if _is_settled(paths[number])])
    return (known[key] for key in keys)


def _key(path: Path, now: os.stat_result) -> str:
    """What tells one state of a file from another."""
    return f"{now.st_size} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_ino} {str(path.absolute())!a}"


def _is_settled(path: Path) -> bool:
    now = path.stat()
    return time.time() - max(now.st_mtime, now.st_ctime) > _FRESH_S


def _cache_file(root: Path) -> Path | None:
    """Where hashes below a folder are kept; None for a user without a home."""
    name = hashlib.sha256(str(root.absolute()).encode(errors="surrogateescape")).hexdigest()[:16]
    return user_cache("files", f"{name}.txt")


def user_cache(folder: str, name: str) -> Path | None:
    """A file of the user's cache; None for a user without a home.

    Args:
        folder: in the cache.
        name: of the file.
    """
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qexp" / folder / name
    return None


def _read(cache: Path | None) -> dict[str, str]:
    """Key -> hash; lines that a process did not finish are left out."""
    known: dict[str, str] = {}
    with suppress(OSError):
        for line in cache.read_text(encoding="ascii", errors="replace").splitlines() if cache is not None else ():
            content, _, key = line.partition(" ")
            if len(content) == _LENGTH and key.endswith(("'", '"')):
                known[key] = content
    return known


def append_lines(cache: Path | None, lines: Sequence[str]) -> None:
    """Keep lines in a file of the cache, all in one write; where that is impossible, they are computed again the next time.

    Args:
        cache: the file; None for none.
        lines: of ASCII.
    """
    if cache is None or not lines:
        return
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(cache, "ab", buffering=0) as handle:
            handle.write("".join(f"{line}\n" for line in lines).encode("ascii"))
