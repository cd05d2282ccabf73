"""Range checks shared by the settings dataclasses of all packages; torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, get_type_hints

from qexp.base.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_range(key: str, value: float | None, low: float, high: float | None = None, *, open_low: bool = False) -> None:
    """Raise unless `low <= value <= high` (`low < value` where `open_low`); None passes."""
    if value is None:
        return
    too_low = value <= low if open_low else value < low
    if too_low or (high is not None and value > high):
        kind = "an integer" if isinstance(value, int) and isinstance(low, int) else "a number"
        bound = f"{kind} from {low} to {high}" if high is not None else f"{kind} {'above' if open_low else 'of at least'} {low}"
        raise UserError(key, value, allowed=bound)


def check_bits(key: str, value: int | None) -> None:
    """Raise unless `value` is None or a width that every quantizer defines, 1 to 16."""
    check_range(key, value, 1, 16)


def check_all(checks: Iterable[tuple[str, float | None, float, float | None]]) -> None:
    """`check_range` over rows of (key, value, low, high)."""
    for key, value, low, high in checks:
        check_range(key, value, low, high)


def check_types(row: DataclassInstance) -> None:
    """Raise `UserError(field, value, ...)` unless each field of a dataclass holds what its type says.

    Args:
        row: whose types can be looked up at run time.
    """
    from pydantic import TypeAdapter, ValidationError  # here, since most who check ranges need none

    hints = get_type_hints(type(row))
    for field in fields(row):
        try:
            TypeAdapter(hints[field.name]).validate_python(getattr(row, field.name), strict=True)
        except ValidationError as error:
            allowed = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise UserError(field.name, getattr(row, field.name), allowed=allowed) from None
