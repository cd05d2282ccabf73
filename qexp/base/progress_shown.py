"""Progress as it is shown: a bar in the last line of a terminal, a line every so often elsewhere, an event with `--json`.

A thread looks at the levels of `qexp.base.progress` now and then, so that a step of a loop costs a look at the clock, and a part
that says nothing for minutes is shown as well. With `quiet` and on ranks above 0 nothing is shown.

Rejected: nested bars, one for each level, which need a terminal line each and say the time left for the innermost alone; and
tqdm's own loop, which draws from the step that is measured. It draws the line here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

from qexp.base import preemption
from qexp.base.console import emit, is_main_process, is_quiet, print_main, speaks_json
from qexp.base.progress import Level, counted, describe, open_levels

SILENT_S = 2.0  # of what is over sooner nothing is shown
LOOK_S = 0.25  # between two looks
FIRST_LINE_S = 10.0  # where there is no terminal, of what is over sooner no line is printed
LONGEST_S = 300.0  # between two lines, which come ever more seldom
GROWTH = 1.5
BAR_WIDTH = 20
WIDTH = 80  # of a terminal that does not say
STOPPING = "stopping after this batch, whose state is stored; a second Ctrl-C stops at once"


@contextmanager
def shown() -> Iterator[None]:
    """Within, progress is shown, as far as this process shows anything; a `shown` within another adds nothing."""
    with counted() if is_main_process() else nullcontext(False) as is_outermost:
        if not is_outermost:
            yield
            return
        view = _Bar(sys.stdout, sys.stderr) if sys.stdout.isatty() and not speaks_json() else _Lines()
        over = threading.Event()
        thread = threading.Thread(target=_look, args=(view, over), name="qexp-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            view.close()


def _look(view: _Bar | _Lines, over: threading.Event) -> None:
    """The thread: show what there is to show until the command is over, and once that a signal was heard."""
    is_told = False
    while not over.wait(LOOK_S):
        if preemption.is_awaited() and not is_told:  # said here: a signal's handler may have interrupted whoever prints
            is_told = True
            print_main(STOPPING)
        levels, now = open_levels(), time.monotonic()
        if levels is None:
            continue
        try:
            if levels and now - levels[0].began >= SILENT_S and not is_quiet():
                view.show(levels, now)
            else:
                view.hide()
        except OSError:  # the terminal is gone; the command goes on
            return


class _Lines:
    """A line or an event every so often."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._wait, self._next = FIRST_LINE_S, self._began

    def show(self, levels: Sequence[Level], now: float) -> None:
        """Say where the command is, if it is time to."""
        tells = any(level.has_items and (level.total != 1 or level.note) for level in levels)
        if now < self._next or now - levels[0].began < FIRST_LINE_S or not tells:
            return  # that something goes on is seen on a terminal alone
        self._wait = min(LONGEST_S, self._wait * GROWTH)
        self._next = now + self._wait
        text, left = describe(levels, now)
        if speaks_json():
            shown_levels = [
                {"label": level.label, "at": level.at() if level.has_items else None, "total": level.total, "note": level.note}
                for level in levels
            ]
            emit("progress", text=text, levels=shown_levels, elapsed_s=round(now - self._began, 1), eta_s=left)
        else:
            print_main(_encodable(text, sys.stdout))

    def hide(self) -> None:
        """Nothing goes on."""

    def close(self) -> None:
        """The command is over."""


_bars: weakref.WeakSet[_Bar] = weakref.WeakSet()  # of this process


class _Bar:
    """The last line of a terminal, drawn by tqdm; whatever is printed meanwhile goes above it.

    Args:
        out: standard output, where the bar is.
        err: standard error, which may be the same terminal.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._bar: Any = None  # of tqdm, while there is something to show
        self.lock = threading.RLock()
        _bars.add(self)
        sys.stdout, sys.stderr = (_Above(stream, self) for stream in (out, err))

    def show(self, levels: Sequence[Level], now: float) -> None:
        """Draw the line anew."""
        from tqdm import tqdm

        text, left = describe(levels, now)
        text, elapsed = _encodable(text, self._out), now - levels[0].began
        share = 0.0 if left is None else elapsed / (elapsed + left)
        form = "{desc}" if left is None else f"{{desc}} {{bar:{BAR_WIDTH}}}"
        width = (os.get_terminal_size(self._out.fileno()).columns or WIDTH) - 1  # in the last column some terminals begin a line
        with self.lock:
            if self._bar is None:
                fixed = {"total": 1.0, "leave": False, "file": self._out}
                self._bar = tqdm(desc=text, initial=share, bar_format=form, ncols=width, **fixed)
            else:
                self._bar.n, self._bar.bar_format, self._bar.ncols = share, form, width
                self._bar.set_description_str(text)  # which draws

    def hide(self) -> None:
        """Leave no line."""
        with self.lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def close(self) -> None:
        """The terminal as it was."""
        self.hide()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Above):
                stream.flush_rest()
        sys.stdout, sys.stderr = self._out, self._err

    def forget(self) -> None:
        """In a forked process: leave the line to the parent, and the lock, which one of its threads may have held."""
        self.lock = threading.RLock()
        if self._bar is not None:
            self._bar.disable = True  # else it is closed as it goes, under a lock of tqdm's
            self._bar = None

    def write(self, stream: TextIO, text: str) -> None:
        """Write whole lines above the bar."""
        with self.lock:
            if self._bar is not None:
                self._bar.clear()
            stream.write(text)
            stream.flush()
            if self._bar is not None:
                self._bar.refresh()


class _Above:
    """A stream of the terminal that a bar is on: whole lines go above the bar, and the rest waits for its end."""

    def __init__(self, stream: TextIO, bar: _Bar) -> None:
        self.stream, self._bar, self._rest = stream, bar, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write what makes whole lines."""
        lines, end, rest = (self._rest + text).rpartition("\n")
        self._rest = rest
        if end:
            self._bar.write(self.stream, lines + end)
        return len(text)

    def flush(self) -> None:
        """Of a line that is written over and over, such as another progress bar, keep what it says now."""
        states = [state for state in self._rest.split("\r") if state]
        self._rest = states[-1] if states else ""
        self.stream.flush()

    def flush_rest(self) -> None:
        """Write what waits for the end of its line."""
        if self._rest:
            self.stream.write(self._rest)
            self.stream.flush()
            self._rest = ""


def _as_before() -> None:
    """In a forked process, such as a DataLoader's worker: no thread draws there.

    Handlers of Python's `logging` keep the streams that they were made with.
    """
    for bar in _bars:
        bar.forget()
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), _Above):
            setattr(sys, name, stream.stream)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_as_before)


def _encodable(text: str, stream: TextIO) -> str:
    """The text as a stream can show it."""
    encoding = stream.encoding or "utf-8"
    try:
        return text.encode(encoding).decode(encoding)
    except UnicodeEncodeError:
        return text.replace("·", "-").encode(encoding, "backslashreplace").decode(encoding)
