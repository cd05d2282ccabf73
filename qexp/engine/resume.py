"""What a resume needs, on disk: the last stored state of a training, and the one before it should that be damaged.

    last.pt      the newest state
    previous.pt  the one before
    next.pt      between its writing and the two renames that make it `last`

Each appears whole or not at all, and at every moment at least one whole state is there, even if `last` had been damaged before.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch

from qexp.base.console import warn_main
from qexp.base.faults import fault_point
from qexp.base.files import check_readable, write_atomic
from qexp.engine.state import FitState

# What torch.load says to a truncated, foreign or unreadable file.
_UNREADABLE = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError)


class ResumeFiles:
    """The resume states in a training's folder."""

    def __init__(self, folder: Path) -> None:
        self._next, self._last, self._previous = (folder / f"{name}.pt" for name in ("next", "last", "previous"))
        self._last_is_whole = False  # as far as this object knows

    def save(self, state: FitState) -> None:
        """Store a state.

        Raises:
            OSError: the disk is full, say; what was stored before is intact.
        """
        write_atomic(self._next, lambda partial: torch.save(state.as_dict(), partial))
        fault_point("state.written")
        # A damaged `last` must not push out the state that was loaded instead; `next` then stands beside `previous`.
        if self._last.exists() and (self._last_is_whole or _load(self._last) is not None):
            os.replace(self._last, self._previous)
        fault_point("state.rotated")
        os.replace(self._next, self._last)
        self._last_is_whole = True

    def load(self) -> FitState | None:
        """The newest whole state, or None."""
        for path in (self._next, self._last, self._previous):
            state = _load(path)
            if state is not None:
                return state
            if path.exists():
                warn_main(f"{path} is damaged; going on from an earlier state")
        return None

    def find(self, epoch: int) -> FitState | None:
        """The state at the end of `epoch`, if it is one of those stored."""
        states = (_load(path) for path in (self._next, self._last, self._previous))
        return next((state for state in states if state is not None and (state.epoch, state.step) == (epoch, 0)), None)

    def drop(self) -> None:
        """Remove them all."""
        for path in (self._next, self._last, self._previous):
            path.unlink(missing_ok=True)


def _load(path: Path) -> FitState | None:
    """The state in a file, or None where it is missing or damaged; raises where it may not be read."""
    check_readable(path)
    try:
        return FitState(**torch.load(path, map_location="cpu", weights_only=True))
    except _UNREADABLE:
        return None
