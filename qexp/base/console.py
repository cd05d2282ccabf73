"""What a person reads: lines on standard output, from rank 0 only, without passwords."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from qexp.base.text import without_passwords


def is_main_process() -> bool:
    """True on the process that prints and writes: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def print_main(*lines: str) -> None:
    """Print lines on rank 0 and flush, so that a log file is current."""
    if is_main_process() and not _say(sys.stdout, lines):
        warn_main("qexp: standard output takes no more (its reader has left, say); the command goes on without it.")


def warn_main(*lines: str) -> None:
    """`print_main`, on standard error."""
    if is_main_process():
        _say(sys.stderr, lines)


def _say(stream: TextIO, lines: Sequence[str]) -> bool:
    """Print lines; False where the stream takes them no more: what comes later then goes nowhere, and is not tried again.

    A training does not end because nobody reads on (`| head -1`): its exit code says what was done, not what was read.
    """
    try:
        encoding = stream.encoding or "utf-8"
        for line in lines:  # a name may be no text (a file's), or none in the terminal's encoding
            text = without_passwords(line).encode(encoding, "backslashreplace").decode(encoding)
            print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True
