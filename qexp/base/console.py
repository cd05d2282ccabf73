"""What a command says: lines for a person, or one JSON object a line for a program; from rank 0 only, without passwords.

Lines of a person are remarks (`print_main`), results (`print_result`) and warnings and errors (`warn_main`, `report_error`). With
`quiet` remarks are left out. With `--json` standard output has events alone, each an object with `event`, and what a person would
have read on the way goes to standard error. docs/agents.md lists the events.

Rejected: Python's `logging` for both. A result is no matter of a level, and an event is a mapping, not a text.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, TextIO

from qexp.base.errors import UserError, UserErrors
from qexp.base.preemption import Preempted
from qexp.base.text import without_passwords

Event = Literal["plan", "progress", "record", "alarm", "result", "error"]
JSON_FLAG = "--json"


@dataclass
class _Manner:
    """How this process speaks.

    Args:
        as_json: events in place of lines.
        quiet: results and errors alone.
        out: where events go; None is standard output as it is at the time.
    """

    as_json: bool = False
    quiet: bool = False
    out: TextIO | None = None


_manner = _Manner()


@contextmanager
def speaking(*, as_json: bool = False, quiet: bool = False) -> Iterator[None]:
    """Within, this process speaks in a manner of its own; what the caller chose already stays.

    With events `sys.stdout` is standard error meanwhile: what a user's code prints is no event, nor what a handler of Python's
    `logging` writes that is made within.

    Args:
        as_json: events in place of lines.
        quiet: results and errors alone.
    """
    global _manner
    before = _manner
    begins = as_json and not before.as_json
    _manner = _Manner(before.as_json or as_json, before.quiet or quiet, sys.stdout if begins else before.out)
    try:
        with redirect_stdout(sys.stderr) if begins else nullcontext():
            yield
    finally:
        _manner = before


def without_json_flag(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--json`, and whether it was among them.

    >>> without_json_flag(["bits=4", "--json"])
    (['bits=4'], True)
    """
    kept = [text for text in arguments if text != JSON_FLAG]
    return kept, len(kept) < len(arguments)


def is_main_process() -> bool:
    """True on the process that prints and writes: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def speaks_json() -> bool:
    """True where standard output has events."""
    return _manner.as_json


def is_quiet() -> bool:
    """True where results and errors alone are said."""
    return _manner.quiet


def print_main(*lines: str) -> None:
    """Print remarks on rank 0 and flush, so that a log file is current."""
    if _manner.quiet:
        return
    if _manner.as_json:
        warn_main(*lines)
    else:
        _print(lines)


def print_result(*lines: str, **fields: Any) -> None:
    """Print what a command was asked for: tables, paths.

    Args:
        lines: for a person, by rank 0.
        fields: of the `result` event.
    """
    if _manner.as_json:
        emit("result", **fields)
    else:
        _print(lines)


def emit(event: Event, **fields: Any) -> None:
    """Print an event where standard output has events; with `quiet` results and errors alone.

    Args:
        event: its kind.
        fields: JSON values, paths and numbers; one that is not finite becomes null, which JSON can say.
    """
    if _manner.as_json and (not _manner.quiet or event in ("result", "error")):
        _print([json.dumps(_plain({"event": event, **fields}), ensure_ascii=True, allow_nan=False)])


def warn_main(*lines: str) -> None:
    """`print_main`, on standard error, `quiet` or not."""
    if is_main_process():
        _say(sys.stderr, lines)


def report_error(error: BaseException | str, *lines: str, exit_code: int | None) -> None:
    """Say what is wrong: lines on standard error, and an `error` event.

    Args:
        error: what was raised, or a text.
        lines: for a person.
        exit_code: what the command ends with; None where it goes on with other jobs.
    """
    warn_main(*lines)
    mistakes = error.mistakes if isinstance(error, UserErrors) else [error] if isinstance(error, UserError) else []
    wrong = [{"key": one.key, "value": str(one.value), "allowed": one.allowed, "remedy": one.remedy} for one in mistakes]
    kind = "" if isinstance(error, str) else type(error).__name__
    emit("error", kind=kind, message=str(error), exit_code=exit_code, wrong=wrong)


def report_stop(stop: KeyboardInterrupt | Preempted) -> int:
    """Say that a signal stopped the command; returns the exit code, as shells report it."""
    asked = stop if isinstance(stop, Preempted) else Preempted(signal.SIGINT)
    line = f"qexp: {asked}. The same command goes on where this one stopped."
    report_error(asked, line, exit_code=asked.exit_code)
    return asked.exit_code


def _plain(value: object) -> object:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # a number of numpy's
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return os.fspath(value) if isinstance(value, PathLike) else str(value)


def _print(lines: Sequence[str]) -> None:
    if is_main_process() and not _say(_manner.out or sys.stdout, lines):
        warn_main("qexp: standard output takes no more (its reader has left, say); the command goes on without it.")


def _say(stream: TextIO, lines: Sequence[str]) -> bool:
    """Print lines; False where the stream takes them no more: what comes later then goes nowhere, and is not tried again.

    A training does not end because nobody reads on (`| head -1`): its exit code says what was done, not what was read.
    """
    try:
        encoding = stream.encoding or "utf-8"
        for line in lines:  # a name may be no text (a file's), or none in the terminal's encoding
            text = without_passwords(line).encode(encoding, "backslashreplace").decode(encoding)
            stream.write(f"{text}\n")  # at once: another thread may print too
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True
