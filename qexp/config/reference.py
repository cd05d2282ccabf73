"""Every key of the configuration, with what its docstring, its type and its marks say of it; torch-free."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from qexp.base.checks import bounds_of
from qexp.config.read_where import marks_of
from qexp.config.root import Config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WORDS: dict[object, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text", NoneType: "null"}


@dataclass(frozen=True)
class KeyInfo:
    """One key.

    Args:
        name: dotted.
        meaning: as the docstring of its settings has it.
        allowed: in words.
        read_where: what must be set for anybody to read it; empty where it always is.
    """

    name: str
    meaning: str
    allowed: str
    read_where: str


@cache
def key_infos() -> dict[str, KeyInfo]:
    """Every key that takes a value, by its dotted name, in the order of the settings."""
    return {info.name: info for info in _infos(Config, "")}


def _infos(settings: type[DataclassInstance], prefix: str) -> Iterator[KeyInfo]:
    hints, meanings = get_type_hints(settings, include_extras=True), argument_docs(settings)
    bounds, marks = bounds_of(settings), marks_of(settings)
    for field in fields(settings):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _infos(hint, f"{prefix}{field.name}.")
            continue
        allowed = _allowed(hint, str(bounds[field.name]) if field.name in bounds else None)
        where = f"{prefix}{marks[field.name]}" if field.name in marks else ""
        yield KeyInfo(prefix + field.name, meanings[field.name], allowed, where)


def argument_docs(settings: type) -> dict[str, str]:
    """Name -> text of the `Args:` of a docstring in Google's form, each on one line."""
    text = inspect.getdoc(settings) or ""
    _, _, section = text.partition("Args:\n")
    section = re.split(r"\n\s*\n|\n(?=\S)", section)[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _allowed(hint: Any, bounds: str | None) -> str:
    """What a type takes, in words; `bounds` are those of its number."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _allowed(inner[0], bounds)
    if origin in (Union, UnionType):
        return " or ".join(_allowed(part, bounds) for part in sorted(inner, key=lambda part: part is NoneType))
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin is list:
        return "a list of " + ("settings" if is_dataclass(inner[0]) else f"({_allowed(inner[0], bounds)})")
    if origin is not None:
        return "a mapping of names to values" if issubclass(origin, dict) else str(hint)
    return bounds if bounds and hint in (int, float) else _WORDS.get(hint, str(hint))
