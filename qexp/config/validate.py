"""Resolved values become a `Config`, or one error that names every mistake; torch-free.

pydantic is strict and reports all errors of a job together, wrong types and the bounds that stand at the fields; what belongs
together is checked in each settings' `__post_init__`. Rejected: OmegaConf
structured configs, which accept `+quant.bit=4` in silence and stop at the first error.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from qexp.base.checks import beyond_bounds
from qexp.base.errors import UserError, UserErrors, as_user_errors, nearest
from qexp.config.root import Config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic_core import ErrorDetails


@cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def validate(values: Mapping[str, object]) -> Config:
    """Turn resolved values into a `Config`.

    Strict: "8" is no integer and 8.0 no width. Infinities and NaN are refused.

    Raises:
        UserErrors: every mistake, together.
    """
    remaining = copy.deepcopy(dict(values))
    errors: dict[str, UserError] = {}
    while True:
        try:
            config = _adapter().validate_json(json.dumps(remaining), strict=True)
            break
        except ValidationError as error:
            # What belongs together is checked only where all types and bounds hold, and stops at the first: take out what is
            # known to be wrong and look again.
            new = {wrong.key: wrong for wrong in as_user_errors(error, explain=_explain) if wrong.key not in errors}
            errors |= new
            if not any([_drop(remaining, key) for key in new]):
                break
    if errors:
        raise UserErrors(errors.values())
    return config


def _drop(values: dict[str, object], key: str) -> bool:
    """Remove a dotted key; False where it is not there."""
    *path, last = key.split(".")
    group: object = values
    for part in path:
        group = group.get(part) if isinstance(group, dict) else None
    return isinstance(group, dict) and group.pop(last, group) is not group


def _explain(key: str, details: ErrorDetails) -> UserError | None:
    """What the configuration knows of a value that pydantic refused: choices, the nearest key, how to set it."""
    value, kind = details["input"], details["type"]
    if key == "experiment":
        remedy = "A file of conf/experiment/ begins with the line `# @package _global_`, and speaks of the settings themselves."
        return UserError(key, value, allowed="values of settings", remedy=remedy)
    if kind == "unexpected_keyword_argument":
        return UnknownKey(key, value)
    if kind in ("missing", "missing_argument"):
        return UserError(key, "(missing)", allowed="a value", remedy=f"Set {key}=VALUE.")
    if kind == "literal_error":
        choices = _choices(details["ctx"]["expected"])
        return UserError(key, value, allowed=choices, remedy=nearest(str(value), choices))
    if kind == "finite_number" or (isinstance(value, float) and not math.isfinite(value)):
        return UserError(key, value, allowed="a finite number")
    if "valid integer" in details["msg"]:
        allowed = details["msg"].removeprefix("Input should be ")
        return UserError(key, value, allowed=allowed.replace("valid integer", "integer").replace("a integer", "an integer"))
    return beyond_bounds(Config, key, details)


def _choices(expected: str) -> list[str]:
    """Pydantic's "'int', 'float' or 'half'" as a list."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


class UnknownKey(UserError):
    """A key that no setting has, with the nearest one, or the nearest few where none is near.

    Args:
        key: as it was given, dotted.
        value: what was given for it.
    """

    def __init__(self, key: str, value: object) -> None:
        known = list(all_keys())
        remedy = _nearest_key(key, known)
        if not remedy and "." in key:
            siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            remedy = f"Known there: {', '.join(siblings)}." if siblings else ""
        remedy = remedy or f"{_nearest_few(key, known)} --help lists groups and first keys, docs/keys.md every key.".lstrip()
        super().__init__(key, value, remedy=remedy)
        self.args = (f"{key}={value}: there is no such key. {remedy}",)


def _nearest_key(key: str, known: list[str]) -> str:
    """Suggest by the last part first, the same group before others: `quant.bit` is nearer to `bits` than to `quant.input`."""
    group, _, part = key.rpartition(".")
    for names in ([name for name in known if name.rpartition(".")[0] == group], known):
        if close := _by_last_part(part, names, count=1, cutoff=0.75):
            return f"Did you mean {close[0]}?"
    return nearest(key, known)


def _nearest_few(key: str, known: list[str]) -> str:
    """Suggest the three that are least unlike; an empty string where all are."""
    close = _by_last_part(key.rpartition(".")[2], known, count=3, cutoff=0.3)
    return f"Did you mean {' or '.join(close)}?" if close else ""


def _by_last_part(part: str, names: list[str], *, count: int, cutoff: float) -> list[str]:
    """Of names, at most `count` whose last part is close to `part`, the closest first; of equal last parts the first."""
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    return [last[match] for match in difflib.get_close_matches(part, list(last), n=count, cutoff=cutoff)]


def all_keys(settings: type[DataclassInstance] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration, groups before their fields."""
    hints = get_type_hints(settings)
    for field in fields(settings):
        yield prefix + field.name
        for hint in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(hint, type) and is_dataclass(hint):
                yield from all_keys(hint, f"{prefix}{field.name}.")
