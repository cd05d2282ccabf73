"""What people read of a variant, in parts: whoever asks for a part reads it here, not in the text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from qexp.base.errors import UserError

AS_TRAINED = "fp32"  # the label of the network as trained
LONGEST = 60  # characters of a label that is typed


@dataclass(frozen=True)
class Label:
    """`W4A4/8 lsq first_last e8`.

    Args:
        way: the mode, or the method that it was trained with; `fp32` for the network as trained.
        weights: widths of the weights; None where nothing is rounded to codes (`half`, `fp32`).
        activations: widths of the activations.
        words: whatever else is not as by default, and what tells two variants apart that would read alike.
        given: what people read in place of all that, where it was typed (`label=TEXT`).
        marks: the words that stand behind `given`: what repeats the variant, or tells it from another of that name.
    """

    way: str
    weights: tuple[int, ...] | None = None
    activations: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    given: str = ""
    marks: tuple[str, ...] = ()

    @property
    def widths(self) -> str:
        """`W4A4/8`; nothing where nothing is rounded to codes."""
        if self.weights is None:
            return ""
        activations = f"A{'/'.join(map(str, self.activations))}" if self.activations else ""
        return f"W{'/'.join(map(str, self.weights))}{activations}"

    @cached_property
    def text(self) -> str:
        """What people read; a label stands in a row for each epoch.

        >>> Label("int", (4,), (8,), ("per_channel",)).text, Label("half").text
        ('W4A8 int per_channel', 'half')
        >>> Label("int", (4,), words=("draw_1",)).called("ours", marks=["draw_1"]).text
        'ours draw_1'
        """
        if self.given:
            return " ".join([self.given, *self.marks])
        return " ".join([*([self.widths] if self.widths else []), self.way, *self.words])

    @cached_property
    def generated(self) -> Label:
        """The label as it is where none was typed: it says what the variant is."""
        return replace(self, given="", marks=())

    def called(self, given: str | None, marks: Collection[str] = ()) -> Label:
        """The label as it was typed.

        Args:
            given: the text; None leaves what is generated.
            marks: which of the words stand behind it.
        """
        return replace(self, given=given, marks=tuple(word for word in self.words if word in marks)) if given else self

    def with_word(self, word: str, *, marks: bool = True) -> Label:
        """The label with a word more, unless it has it.

        Args:
            word: to stand last.
            marks: a typed label has it too.
        """
        words = self.words if word in self.words else (*self.words, word)
        marked = self.given and marks and word not in self.marks
        return replace(self, words=words, marks=(*self.marks, word) if marked else self.marks)

    def without(self, words: Collection[str]) -> Label:
        """The label without words that go without saying."""
        words_left, marks_left = (tuple(word for word in kept if word not in words) for kept in (self.words, self.marks))
        return replace(self, words=words_left, marks=marks_left)

    def as_row(self) -> dict[str, Any]:
        """For a journal; what was typed only where something was."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("given", "marks")}


def common_words(labels: Iterable[Label]) -> tuple[str, ...]:
    """Words that all labels have, which go without saying among them. A copy in fp16 has few, and counts where some have any.

    Args:
        labels: of quantized copies.

    >>> common_words([Label("int", (4,), words=("first_last", "e8")), Label("int", (8,), words=("first_last",))])
    ('first_last',)
    """
    different = list(dict.fromkeys(labels))
    in_fp16 = [label for label in different if label.way == "half"]
    counted = different if any(label.words for label in in_fp16) else [label for label in different if label not in in_fp16]
    words = [label.words for label in counted]
    return tuple(word for word in words[0] if all(word in others for others in words)) if words else ()


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
    Label(way='lsq', weights=(4,), activations=(4, 8), words=('e8',), given='', marks=())
    """
    first, *rest = text.split()
    widths = re.fullmatch(r"W([\d/]*)(?:A([\d/]+))?", first)
    if widths is None or not rest:
        return Label(first, words=tuple(rest))
    weights, activations = (tuple(int(width) for width in (part or "").split("/") if width) for part in widths.groups())
    return Label(rest[0], weights, activations, tuple(rest[1:]))


def told_apart(labels: Sequence[Label], draws: Sequence[int]) -> list[Label]:
    """Labels of which a typed one that stands for different variants, or reads as another's, has the generated one behind it.

    Args:
        labels: of an experiment's rows.
        draws: of their calibration images, which repeat a variant.

    >>> mine, other = Label("int", (4,)).called("ours"), Label("half").called("ours")
    >>> [label.text for label in told_apart([mine, other], [0, 0])], told_apart([mine, mine], [0, 0]) == [mine, mine]
    (['ours (W4 int)', 'ours (half)'], True)
    """
    if not any(label.given for label in labels):
        return list(labels)
    bare = [label.without([draw_word(draw)]) for label, draw in zip(labels, draws, strict=True)]
    meant: dict[str, set[str]] = {}
    for label in bare:
        meant.setdefault(label.text, set()).add(label.generated.text)
    return [
        replace(label, marks=(*label.marks, f"({short.generated.text})")) if label.given and len(meant[short.text]) > 1 else label
        for label, short in zip(labels, bare, strict=True)
    ]


def check_label(key: str, text: str | None) -> None:
    """Refuse what no table, figure and console line could show as a name; None passes.

    Args:
        key: of the setting.
        text: as typed.

    Raises:
        UserError: empty, longer than `LONGEST` characters, several lines, characters that are not printed, `fp32`.
    """
    if text is None:
        return
    if text == AS_TRAINED:
        raise UserError(key, text, allowed="another text", remedy=f"{AS_TRAINED} names the network as trained.")
    # Legends of matplotlib leave out what begins with an underscore.
    if not text.strip() or text != text.strip() or len(text) > LONGEST or not text.isprintable() or text[0] == "_":
        allowed = f"one line of 1 to {LONGEST} printable characters, without space at its ends or an underscore before it"
        shown = text if text.isprintable() else repr(text)
        raise UserError(key, shown, allowed=allowed)
