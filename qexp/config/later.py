"""Settings that came after the first runs were stored: at their default they stay out of what is stored of a job and names it.

So stored values and keys remain what they were, and a setting is marked where it is defined.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from typing import TypeVar, get_type_hints

_MARK = "later"

DefaultT = TypeVar("DefaultT")


def later(default: DefaultT) -> DefaultT:  # as `dataclasses.field` is typed, which gives a Field
    """The default of a field that the settings of the first stored runs did not have."""
    if isinstance(default, list):
        made: DefaultT = field(default_factory=lambda: copy.copy(default), metadata={_MARK: True})
        return made
    return field(default=default, metadata={_MARK: True})


def stored_values(values: Mapping[str, object], settings: type) -> dict[str, object]:
    """The values of a job as they are stored and name it: without later settings that are at their default.

    Args:
        values: by key, groups as mappings; also such as no setting would take.
        settings: the dataclass of these values.
    """
    defaults, groups = _later_fields(settings), _groups(settings)
    stored: dict[str, object] = {}
    for key, value in values.items():
        if key in groups and isinstance(value, Mapping):
            stored[key] = stored_values(value, groups[key])
        elif key not in defaults or value != defaults[key]:
            stored[key] = value
    return stored


@cache
def _later_fields(settings: type) -> dict[str, object]:
    """Name -> default of the fields that are marked."""
    assert is_dataclass(settings)
    later_fields = [item for item in fields(settings) if _MARK in item.metadata]
    return {item.name: item.default if item.default_factory is MISSING else item.default_factory() for item in later_fields}


@cache
def _groups(settings: type) -> dict[str, type]:
    """Name -> dataclass of the fields that are groups."""
    hints = get_type_hints(settings)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
