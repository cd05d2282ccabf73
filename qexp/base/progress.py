"""Where a command is: `training 2/3 (seed=1) · epoch 4/8 · variant 5/12 · ETA 3 min`.

Whatever takes long says what it goes through by `track` or `phase`; each is a level below those that are open. They are counted
where somebody looks, who is `qexp.base.progress_shown` in a command; elsewhere, as in a notebook, `track` yields its items alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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
_counting: int | None = None  # the thread that runs the command, whose levels they are; None where nobody looks


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
    if total is None and isinstance(items, Sized):
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
def counted() -> Iterator[bool]:
    """Within, the levels of this thread are counted; False where somebody has them counted already."""
    global _counting
    if _counting is not None:
        yield False
        return
    _counting = threading.get_ident()
    try:
        yield True
    finally:
        _counting = None
        _levels.clear()


def open_levels() -> tuple[Level, ...] | None:
    """The levels that are open, the outermost first; None while nothing may be drawn."""
    return None if _is_paused else tuple(_levels)
