"""Resolved values become a `Config`, or one error that names every mistake; torch-free.

pydantic is strict and reports all errors of a job together; ranges live in each settings' `__post_init__`. Rejected: OmegaConf
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
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from qexp.base.errors import UserError, UserErrors, nearest
from qexp.config.root import Config


@cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def validate(values: Mapping[str, Any]) -> Config:
    """Turn resolved values into a `Config`, or raise one `UserErrors` that names every mistake.

    Strict: "8" is no integer and 8.0 no width. Infinities and NaN are refused.
    """
    remaining, found = copy.deepcopy(dict(values)), {}
    while True:
        try:
            config = _adapter().validate_json(json.dumps(remaining), strict=True)
            break
        except ValidationError as error:
            # pydantic checks no range of an object one of whose types is wrong, and our own checks stop at the first: take out
            # what was found and look again.
            new = {each.key: each for each in map(_as_user_error, error.errors()) if each.key not in found}
            found |= new
            if not any([_drop(remaining, key) for key in new]):
                break
    if found:
        raise UserErrors(found.values())
    return config


def _drop(values: dict[str, Any], key: str) -> bool:
    """Remove a dotted key; False where it is not there."""
    *path, last = key.split(".")
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return isinstance(values, dict) and values.pop(last, values) is not values


def _as_user_error(item: Mapping[str, Any]) -> UserError:
    """Say one of pydantic's findings as key, value, allowed, remedy."""
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return cause
    key, value, kind = ".".join(str(part) for part in item["loc"]), item.get("input"), item["type"]
    if kind == "unexpected_keyword_argument":
        return UnknownKey(key, value)
    if kind in ("missing", "missing_argument"):
        return UserError(key, "(missing)", allowed="a value", remedy=f"Set {key}=VALUE.")
    if kind == "literal_error":
        choices = _choices(item["ctx"]["expected"])
        return UserError(key, value, allowed=choices, remedy=nearest(str(value), choices))
    if kind == "finite_number" or (isinstance(value, float) and not math.isfinite(value)):
        return UserError(key, value, allowed="a finite number")
    return UserError(
        key,
        value,
        allowed=item["msg"]
        .removeprefix("Input should be ")
        .replace("valid integer", "integer")
        .replace("a integer", "an integer"),
    )


def _choices(expected: str) -> list[str]:
    """Pydantic's "'int', 'float' or 'half'" as a list."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


class UnknownKey(UserError):
    """A key that no setting has, with the nearest one."""

    def __init__(self, key: str, value: object) -> None:
        known = list(all_keys())
        remedy = _nearest_key(key, known)
        if not remedy and "." in key:
            siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            remedy = f"Known there: {', '.join(siblings)}." if siblings else ""
        remedy = remedy or f"Known: {', '.join(name for name in known if '.' not in name)}."
        super().__init__(key, value, remedy=remedy)
        self.args = (f"{key}={value}: there is no such key. {remedy}",)


def _nearest_key(key: str, known: list[str]) -> str:
    """Suggest by the last part first, the same group before others: `quant.bit` is nearer to `bits` than to `quant.input`."""
    group, _, part = key.rpartition(".")
    for names in ([name for name in known if name.rpartition(".")[0] == group], known):
        last = {name.rpartition(".")[2]: name for name in reversed(names)}
        found = difflib.get_close_matches(part, list(last), n=1, cutoff=0.75)
        if found:
            return f"Did you mean {last[found[0]]}?"
    return nearest(key, known)


def all_keys(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration, groups before their fields."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        yield prefix + item.name
        for candidate in (hints[item.name], *get_args(hints[item.name])):
            if is_dataclass(candidate):
                yield from all_keys(candidate, f"{prefix}{item.name}.")
