"""Lines of a journal as JSON. The evaluations of a run differ in a few numbers, so what they share is read once.

A line is cut before four of the names that such a row has, and the parts are read by themselves. Where each of them, with braces
around it, is an object, the line is the object with the members of all, whatever stands in it; else it is read as a whole.
Rejected: an index beside the journal (SQLite, Parquet), which has to be made from these lines first, and to be believed later.
"""

from __future__ import annotations

import json
from typing import Any

RECORD = '{"kind":"record",'  # begins the lines that are worth it
EPOCH, SIZE, TIME, VERSIONS = (f',"{name}":' for name in ("epoch", "size_bytes", "time_ms", "versions"))
MOST_KNOWN = 10_000  # parts that are held at once


class Lines:
    """Reads lines of one journal. Rows share what is equal in them, and so are not to be changed."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._decode = json.JSONDecoder().raw_decode

    def parse(self, line: str) -> Any:
        """A line as JSON.

        Raises:
            ValueError: it is none.
        """
        row = self._evaluation(line.rstrip()) if line.startswith(RECORD) else None
        return json.loads(line) if row is None else row

    def _evaluation(self, line: str) -> dict[str, Any] | None:
        """The row of an evaluation; None where the line is to be read as a whole."""
        epoch = line.find(EPOCH)
        size = line.find(SIZE, epoch)
        time = line.find(TIME, size)
        versions = line.find(VERSIONS, time)
        time_ms = line[time + len(TIME) : versions]
        if min(epoch, size, time, versions) < 0 or not (time_ms.isascii() and time_ms.isdecimal()) or time_ms[0] == "0":
            return None
        try:
            return {
                **self._shared(f"{line[:epoch]}}}"),
                **self._object(f"{{{line[epoch + 1 : size]}}}"),
                **self._shared(f"{{{line[size + 1 : time]}}}"),
                "time_ms": int(time_ms),
                **self._shared(f"{{{line[versions + 1 :]}"),
            }
        except ValueError:
            return None

    def _shared(self, text: str) -> dict[str, Any]:
        """A part that many lines have, as it was read before."""
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = self._known[text] = self._object(text)
        return known

    def _object(self, text: str) -> dict[str, Any]:
        """A part.

        Raises:
            ValueError: it is no object by itself.
        """
        part, end = self._decode(text)
        if end != len(text):
            raise ValueError(text)
        return dict(part)
