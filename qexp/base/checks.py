"""Range checks shared by the settings dataclasses of all packages; torch-free.

The bounds of a setting stand at its field, `lr: Annotated[float, Gt(0.0)]`, where pydantic reads them: all that are broken are
reported in one pass, with the wrong types. Settings that code makes are held to the same bounds by `check_bounds`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

from qexp.base.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic_core import ErrorDetails

_WORDS = {bool: "true or false", str: "a text"}  # what pydantic has longer words for
_BEYOND = ("greater_than_equal", "greater_than", "less_than_equal")  # pydantic's names

Count = Annotated[int, Ge(1)]
Epochs = Annotated[int, Ge(1), Le(100_000)]  # each is planned for by itself
Natural = Annotated[int, Ge(0)]
Bits = Annotated[int, Ge(1), Le(16)]  # that every quantizer defines
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Share = Annotated[float, Ge(0.0), Le(1.0)]
Positive = Annotated[float, Gt(0.0)]
NotNegative = Annotated[float, Ge(0.0)]


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may be.

    Args:
        kind: `int` or `float`.
        low: the least, None for none.
        high: the largest, None for none.
        open_low: `low` itself is refused.

    >>> str(Bounds(int, 1)), str(Bounds(float, 0.0, 1.0)), str(Bounds(float, 0.0, open_low=True))
    ('an integer of at least 1', 'a number from 0.0 to 1.0', 'a number above 0.0')
    """

    kind: type
    low: float | None = None
    high: float | None = None
    open_low: bool = False

    def hold(self, value: float) -> bool:
        """True for a number within them."""
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        return above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        """In words, as messages have them."""
        kind = "an integer" if self.kind is int else "a number"
        if self.low is None:
            return f"{kind} of at most {self.high}"
        if self.high is None:
            return f"{kind} {'above' if self.open_low else 'of at least'} {self.low}"
        return f"{kind} above {self.low}, at most {self.high}" if self.open_low else f"{kind} from {self.low} to {self.high}"


@cache
def bounds_of(settings: type) -> dict[str, Bounds]:
    """Field of a settings class -> the bounds that stand at it, or at the elements of its list, for the fields that have some."""
    hints = {name: _bounds(hint) for name, hint in get_type_hints(settings, include_extras=True).items()}
    return {name: bounds for name, bounds in hints.items() if bounds is not None}


def _bounds(hint: object) -> Bounds | None:
    """The bounds of `Annotated[int, Ge(1)]`, or of the one within a union or a list."""
    if get_origin(hint) in (Union, UnionType, list):
        return next((bounds for part in get_args(hint) if (bounds := _bounds(part)) is not None), None)
    if get_origin(hint) is not Annotated:
        return None
    kind, *marks = get_args(hint)
    ends = {name: getattr(mark, name) for mark in marks for name in ("ge", "gt", "le") if hasattr(mark, name)}
    return Bounds(kind, ends.get("ge", ends.get("gt")), ends.get("le"), open_low="gt" in ends) if ends else _bounds(kind)


def beyond_bounds(settings: type, key: str, details: ErrorDetails) -> UserError | None:
    """The error for a value that pydantic refused for its bounds; None where it refused it for something else.

    Args:
        settings: the root of the settings.
        key: dotted, with the number of an element in a list, which the message leaves out.
        details: of pydantic's error.
    """
    if details["type"] not in _BEYOND:
        return None
    *groups, name = (part for part in key.split(".") if not part.isdigit())
    owner: type | None = settings
    for group in groups:
        owner = owner and _settings_in(get_type_hints(owner).get(group))
    bounds = bounds_of(owner).get(name) if owner else None
    return UserError(".".join([*groups, name]), details["input"], allowed=str(bounds)) if bounds else None


def _settings_in(hint: object) -> type | None:
    """The settings class of a field: the hint itself, or within a union or a list."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((inner for part in get_args(hint) if (inner := _settings_in(part)) is not None), None)


def check_bounds(settings: DataclassInstance, prefix: str) -> None:
    """Raise UserError for the first field that is beyond the bounds that stand at it; None passes.

    Args:
        settings: a settings object.
        prefix: of its keys (`calibrate`), empty for the root.
    """
    for name, bounds in bounds_of(type(settings)).items():
        value = getattr(settings, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not bounds.hold(number):
                raise UserError(f"{prefix}.{name}".lstrip("."), number, allowed=str(bounds))


def check_range(key: str, value: float | None, low: float, high: float | None = None, *, open_low: bool = False) -> None:
    """Raise unless `low <= value <= high` (`low < value` where `open_low`); None passes."""
    bounds = Bounds(int if isinstance(value, int) and isinstance(low, int) else float, low, high, open_low)
    if value is not None and not bounds.hold(value):
        raise UserError(key, value, allowed=str(bounds))


def check_bits(key: str, value: int | None) -> None:
    """Raise unless `value` is None or a width that every quantizer defines, 1 to 16."""
    check_range(key, value, 1, 16)


def check_types(row: DataclassInstance) -> None:
    """Raise `UserError(field, value, ...)` unless each field of a dataclass holds what its type says.

    Args:
        row: whose types can be looked up at run time.
    """
    from pydantic import TypeAdapter, ValidationError  # here, since most who check ranges need none

    hints = get_type_hints(type(row))
    for field in fields(row):
        hint, value = hints[field.name], getattr(row, field.name)
        try:
            TypeAdapter(hint).validate_python(value, strict=True)
        except ValidationError as error:
            known = get_args(hint) if get_origin(hint) is Literal else _WORDS.get(hint)
            raise UserError(
                field.name, value, allowed=known or error.errors()[0]["msg"].removeprefix("Input should be ")
            ) from None
