"""Where a command is: `training 2/3 (seed=1) · epoch 4/8 · variant 5/12 · ETA 3 min`.

Whatever takes long says what it goes through by `track` or `phase`; each is a level below those that are open. Within `shown` a
thread looks at the levels now and then: a bar in the last line of a terminal, a line of its own elsewhere, an event with
`--json`, nothing with `quiet` or on ranks above 0. So a step costs a look at the clock, and a part that says nothing for minutes
is shown as well. Outside of `shown`, as in a notebook, nothing is counted.

Rejected: nested bars, one for each level, which need a terminal line each and say the time left for the innermost alone; and
tqdm's own loop, which draws from the step that is measured.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from qexp.base.console import emit, is_main_process, is_quiet, print_main, speaks_json

T = TypeVar("T")
SILENT_S = 2.0  # of what is over sooner nothing is shown
LOOK_S = 0.25  # between two looks
FIRST_LINE_S = 10.0  # where there is no terminal, of what is over sooner no line is printed
LONGEST_S = 300.0  # between two lines, which come ever more seldom
GROWTH = 1.5
BAR_WIDTH = 20
WIDTH = 80  # of a terminal that does not say


class Level:
    """What is gone through, and how far.

    Args:
        label: one item of it, in the singular (`epoch`), or all of it where it has no items.
        total: number of items; None where nobody knows.
        done: items behind already, by an earlier command.
    """

    def __init__(self, label: str, total: int | None = None, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self.note = ""  # on the present item
        self.has_items = True
        self.began = self._item_began = time.monotonic()
        # Items without and with levels within: of the trainings of a sweep those that are stored take no time, and tell none.
        self._spent, self._num = [0.0, 0.0], [0, 0]
        self.went_within = False

    def end_item(self, size: int = 1) -> None:
        """Note that so many items are behind."""
        now = time.monotonic()
        self._spent[self.went_within] += now - self._item_began
        self._num[self.went_within] += size
        self.done += size
        self._item_began, self.went_within = now, False

    def left_s(self, within: float | None, now: float) -> float | None:
        """Seconds that the rest takes at the pace so far; None while nothing tells.

        Args:
            within: seconds left of the levels within the present item.
            now: by the clock.
        """
        if self.total is None:
            return None if self.has_items else within
        kind, elapsed = int(self.went_within or self._num[1] > 0), now - self._item_began
        if self._num[kind]:
            one = self._spent[kind] / self._num[kind]
            rest = max(one - elapsed, within or 0.0, 0.0)
        elif within is not None:
            one, rest = elapsed + within, within
        else:
            return None
        return one * max(0, self.total - self.done - 1) + rest

    def at(self) -> int:
        """The present item, from 1."""
        return self.done + 1 if self.total is None else min(self.done + 1, self.total)

    def text(self) -> str:
        """As it is shown."""
        note = f" ({self.note})" if self.note else ""
        if not self.has_items:
            return f"{self.label}{note}"
        return f"{self.label} {self.at()}{'' if self.total is None else f'/{self.total}'}{note}"


_levels: list[Level] = []  # those that are open, the outermost first
_is_paused = False
_counting: int | None = None  # the thread that runs the command, whose levels they are; None outside of `shown`


@contextmanager
def _open(level: Level) -> Iterator[None]:
    """Within, a level is the innermost."""
    for outer in _levels[-1:]:
        outer.went_within = True
    _levels.append(level)
    try:
        yield
    finally:
        _drop_from(level)


def _drop_from(level: Level, behind: int = 0) -> None:
    """Close a level and those within it, or only these: a loop that an error left lives as long as its traceback.

    Args:
        level: which; one that is closed already has none within.
        behind: 1 leaves the level itself open.
    """
    if level in _levels:
        del _levels[_levels.index(level) + behind :]


def _counts() -> bool:
    return _counting == threading.get_ident()


def track(
    items: Iterable[T],
    label: str,
    *,
    total: int | None = None,
    done: int = 0,
    note: Callable[[T], str] | None = None,
    size: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """Yield `items`, and keep count of them.

    Args:
        items: what takes long; each is behind when the next is asked for.
        label: one of them, in the singular.
        total: number of items; None takes it from `items`, where they tell.
        done: how many were behind before.
        note: of an item, what tells it from the others.
        size: of an item, where what is counted is what it holds, such as the images of a batch.
    """
    if not _counts():
        yield from items
        return
    if total is None and hasattr(items, "__len__"):
        total = done + len(items)
    level = Level(label, total, done)
    with _open(level):
        for item in items:
            if note is not None:
                level.note = note(item)
            yield item
            _drop_from(level, behind=1)
            level.end_item(1 if size is None else size(item))


@contextmanager
def phase(label: str, note: str = "") -> Iterator[None]:
    """Within, something goes on that has no items of its own.

    Args:
        label: what (`calibration`).
        note: of what.
    """
    if not _counts():
        yield
        return
    level = Level(label)
    level.has_items, level.note = False, note
    with _open(level):
        yield


@contextmanager
def paused() -> Iterator[None]:
    """Within, nothing is drawn that could take time from what is measured."""
    global _is_paused
    before, _is_paused = _is_paused, True
    try:
        yield
    finally:
        _is_paused = before


def describe(levels: Sequence[Level], now: float) -> tuple[str, float | None]:
    """The line that says where a command is, and the seconds left, None while nothing tells.

    Args:
        levels: those that are open, the outermost first.
        now: by the clock.
    """
    left: float | None = None
    for level in reversed(levels):
        left = level.left_s(left, now)
    # A level of one item tells nothing, unless nothing else does.
    parts = [level.text() for level in levels if level.total != 1 or level.note] or [level.text() for level in levels[-1:]]
    return " · ".join([*parts, *([f"ETA {duration(left)}"] if left is not None else [])]), left


def _encodable(text: str, stream: TextIO) -> str:
    """The text as a stream can show it."""
    encoding = stream.encoding or "utf-8"
    try:
        return text.encode(encoding).decode(encoding)
    except UnicodeEncodeError:
        return text.replace("·", "-").encode(encoding, "backslashreplace").decode(encoding)


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> [duration(seconds) for seconds in (0.2, 40, 200, 20000, 400000)]
    ['1 s', '40 s', '3 min', '5.6 h', '4.6 d']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


@contextmanager
def shown() -> Iterator[None]:
    """Within, levels are counted and shown, as far as this process shows anything; a `shown` within another adds nothing."""
    global _counting
    if _counting is not None or not is_main_process():
        yield
        return
    _counting = threading.get_ident()
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
        _counting = None
        _levels.clear()


def _look(view: _Bar | _Lines, over: threading.Event) -> None:
    """The thread: show what there is to show until the command is over."""
    while not over.wait(LOOK_S):
        if _is_paused:
            continue
        levels, now = tuple(_levels), time.monotonic()
        if levels and now - levels[0].began >= SILENT_S and not is_quiet():
            view.show(levels, now)
        else:
            view.hide()


class _Lines:
    """A line or an event every so often."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._wait, self._next = FIRST_LINE_S, self._began

    def show(self, levels: Sequence[Level], now: float) -> None:
        """Say where the command is, if it is time to."""
        if now < self._next or now - levels[0].began < FIRST_LINE_S:
            return
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
        sys.stdout, sys.stderr = (_Above(stream, self) for stream in (out, err))  # type: ignore[assignment]

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
        self._stream, self._bar, self._rest = stream, bar, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what makes whole lines."""
        lines, end, rest = (self._rest + text).rpartition("\n")
        self._rest = rest
        if end:
            self._bar.write(self._stream, lines + end)
        return len(text)

    def flush_rest(self) -> None:
        """Write what waits for the end of its line."""
        self._stream.write(self._rest)
        self._stream.flush()
        self._rest = ""
