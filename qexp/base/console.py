"""What a person reads: lines on standard output, from rank 0 only."""

from __future__ import annotations

import os
import sys


def is_main_process() -> bool:
    """True on the process that prints and writes: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def print_main(*lines: str) -> None:
    """Print lines on rank 0 and flush, so that a log file is current."""
    if is_main_process():
        for line in lines:
            print(line, flush=True)


def warn_main(*lines: str) -> None:
    """`print_main`, on standard error."""
    if is_main_process():
        for line in lines:
            print(line, file=sys.stderr, flush=True)
