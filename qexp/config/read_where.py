"""A mark at a field: what its siblings must be for anybody to read it. `qexp.sweep.check_read` refuses what is typed in vain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import get_type_hints


@dataclass(frozen=True)
class ReadWhere:
    """`Annotated[float, ReadWhere("schedule", "step")]`: it is read where the sibling `schedule` is `step`.

    Args:
        sibling: another field of the same settings.
        value: that it must have, or one of a tuple; None for any but 0.
    """

    sibling: str
    value: object = None

    def holds(self, settings: object) -> bool:
        """True for settings that read the field."""
        given: object = getattr(settings, self.sibling)
        if isinstance(self.value, tuple):
            return given in self.value
        return bool(given) if self.value is None else given == self.value

    def __str__(self) -> str:
        """As it is typed, without its group."""
        value = "NUMBER" if self.value is None else "|".join(self.value) if isinstance(self.value, tuple) else self.value
        return f"{self.sibling}={str(value).lower() if isinstance(value, bool) else value}"


@cache
def marks_of(settings: type) -> dict[str, ReadWhere]:
    """Field -> its mark, for the fields of a settings class that have one."""
    hints = get_type_hints(settings, include_extras=True)
    return {
        name: mark for name, hint in hints.items() for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, ReadWhere)
    }
