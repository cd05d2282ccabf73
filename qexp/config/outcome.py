"""What a correction did to one copy; torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qexp.base.text import Note

Left = Mapping[str, Sequence[str]]  # why -> the names of those that were left alone


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a correction did to one copy, of all that it is for: batch norms, layers, or pairs of layers.

    Args:
        done: how many it changed.
        declined: those that it could not change.
        unneeded: those that it had nothing to change in.
    """

    done: int
    declined: Left = field(default_factory=dict)
    unneeded: Left = field(default_factory=dict)

    @classmethod
    def of(cls, done: int, declined: Sequence[Note] = (), unneeded: Sequence[Note] = ()) -> Outcome:
        """The outcome, of notes on what was left alone."""
        return cls(done=done, declined=_by_reason(declined), unneeded=_by_reason(unneeded))

    @property
    def left(self) -> list[Note]:
        """A note for each that was left alone."""
        both = [*self.declined.items(), *self.unneeded.items()]
        return [Note(name, reason) for reason, names in both for name in names]

    @property
    def count(self) -> int:
        """How many it is for."""
        return self.done + len(self.left)


def _by_reason(notes: Sequence[Note]) -> dict[str, list[str]]:
    """Why -> the names."""
    return {reason: [note.layer for note in notes if note.reason == reason] for reason in dict.fromkeys(n.reason for n in notes)}
