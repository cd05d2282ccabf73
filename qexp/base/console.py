"""What a person reads: lines on standard output, from rank 0 only, without passwords."""

from __future__ import annotations

import os
import sys

from qexp.base.text import without_passwords


def is_main_process() -> bool:
    """True on the process that prints and writes: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def print_main(*lines: str) -> None:
    """Print lines on rank 0 and flush, so that a log file is current."""
    if is_main_process():
        for line in lines:
            print(without_passwords(line), flush=True)


def warn_main(*lines: str) -> None:
    """`print_main`, on standard error."""
    if is_main_process():
        for line in lines:
            print(without_passwords(line), file=sys.stderr, flush=True)
