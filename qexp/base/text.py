"""Small pieces of text that several packages write: counted words, reasons put together, names for files."""

from __future__ import annotations

import re
from collections.abc import Sequence

MIB = 2**20  # bytes
# `user:password@` of a URI, and a parameter behind its `?` that is named like one. Neither goes beyond a quotation mark, so that
# JSON with a password in it stays JSON.
_PASSWORD = re.compile(
    r'(?P<user>://[^/@:\s"]*):[^/\s"]*@'
    r"""|(?P<key>[?&;][\w.-]*(?:passw|pwd|secret|token|access_?key|api_?key)[\w.-]*=)[^&;\s"']+""",
    re.IGNORECASE,
)


def without_passwords(text: str) -> str:
    """A text without the passwords of the URIs in it, for all that is shown, sent or stored.

    >>> without_passwords("uri=http://ann:secret@host:5000 failed, and postgresql://host/db?user=ann&password=secret")
    'uri=http://ann@host:5000 failed, and postgresql://host/db?user=ann&password=***'
    """
    if not ("://" in text and "@" in text) and not ("=" in text and any(mark in text for mark in "?&;")):
        return text  # as almost every row of a journal is; the pattern looks at each letter
    return _PASSWORD.sub(lambda match: f"{match['user']}@" if match["user"] else f"{match['key']}***", text)


class Note(str):
    """A note on a layer, whose text is `layer: reason`.

    Args:
        layer: its name, or those of several.
        reason: what was left alone, and why.
    """

    layer: str
    reason: str

    def __new__(cls, layer: str, reason: str) -> Note:
        """The text, with its parts."""
        note = super().__new__(cls, f"{layer}: {reason}")
        note.layer, note.reason = layer, reason
        return note

    def __reduce__(self) -> tuple[type[Note], tuple[str, str]]:
        """What a copy is made of."""
        return Note, (self.layer, self.reason)


def by_reason(notes: Sequence[str], most: int | None = None) -> list[str]:
    """Notes on layers put together where they have one reason, of which `most` layers are named; other notes as they are.

    >>> by_reason([Note("bn1", "not folded, it is alone"), Note("bn2", "not folded, it is alone")])
    ['not folded, it is alone (bn1; bn2)']
    """
    layers_of: dict[str, list[str]] = {}
    for note in notes:
        if isinstance(note, Note):
            layers_of.setdefault(note.reason, []).append(note.layer)
        else:
            layers_of.setdefault(note, [])
    lines = []
    for reason, layers in layers_of.items():
        rest = f"; ... {len(layers)} in all" if most is not None and len(layers) > most else ""
        lines.append(f"{reason} ({'; '.join(layers[:most])}{rest})" if layers else reason)
    return lines


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not 1.

    >>> counted(1, "job"), counted(3, "job")
    ('1 job', '3 jobs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def file_name(label: str) -> str:
    """A label as the name of a folder.

    >>> file_name("W4/8A8 int rules")
    'W4-8A8_int_rules'
    """
    kept = label.replace("/", "-")
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in kept)


def mib_text(size: int) -> str:
    """Bytes in MiB, the unit of every size of a network that people read, without its name.

    >>> mib_text(302_285), mib_text(12 * MIB), mib_text(2048)
    ('0.288', '12.00', '0.0020')
    """
    mib = size / MIB
    return f"{mib:.2f}" if mib >= 10 else f"{mib:.3f}" if mib >= 0.1 else f"{mib:.4f}"


def size_text(size: int) -> str:
    """Bytes with their unit.

    >>> size_text(302_285)
    '0.288 MiB'
    """
    return f"{mib_text(size)} MiB"
