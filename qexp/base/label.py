"""What people read of a variant, in parts: whoever asks for a part reads it here, not in the text."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Label:
    """`W4A4/8 lsq first_last e8`.

    Args:
        way: the mode, or the method that it was trained with; `fp32` for the network as trained.
        weights: widths of the weights; None where nothing is rounded to codes (`half`, `fp32`).
        activations: widths of the activations.
        words: whatever else is not as by default, and what tells two variants apart that would read alike.
    """

    way: str
    weights: tuple[int, ...] | None = None
    activations: tuple[int, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def widths(self) -> str:
        """`W4A4/8`; nothing where nothing is rounded to codes."""
        if self.weights is None:
            return ""
        activations = f"A{'/'.join(map(str, self.activations))}" if self.activations else ""
        return f"W{'/'.join(map(str, self.weights))}{activations}"

    @property
    def text(self) -> str:
        """What people read.

        >>> Label("int", (4,), (8,), ("per_channel",)).text, Label("half").text
        ('W4A8 int per_channel', 'half')
        """
        return " ".join([*([self.widths] if self.widths else []), self.way, *self.words])

    def with_word(self, word: str) -> Label:
        """The label with a word more, unless it has it."""
        return self if word in self.words else replace(self, words=(*self.words, word))

    def without(self, words: Collection[str]) -> Label:
        """The label without words that go without saying."""
        return replace(self, words=tuple(word for word in self.words if word not in words))


def draw_word(draw: int) -> str:
    """What a label says of a draw of calibration images but the first.

    >>> draw_word(3)
    'draw_3'
    """
    return f"draw_{draw}"


def read_stored_label(text: str) -> Label:
    """The parts of a label that was stored as text alone: by qexp 0.1, whose records have no parts, and in converted networks.

    The only place that reads a label; what is stored by now is never read this way.

    >>> read_stored_label("W4A4/8 lsq e8")
    Label(way='lsq', weights=(4,), activations=(4, 8), words=('e8',))
    """
    first, *rest = text.split()
    widths = re.fullmatch(r"W([\d/]*)(?:A([\d/]+))?", first)
    if widths is None or not rest:
        return Label(first, words=tuple(rest))
    weights, activations = (tuple(int(width) for width in (part or "").split("/") if width) for part in widths.groups())
    return Label(rest[0], weights, activations, tuple(rest[1:]))
