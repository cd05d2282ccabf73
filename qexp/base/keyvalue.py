"""The small commands, which take KEY=VALUE and need no Hydra: report, ui, study, sync, trainings, merge."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import TypeVar, get_type_hints

from qexp.base.checks import beyond_bounds
from qexp.base.console import print_result, report_error, report_stop, speaking, without_json_flag
from qexp.base.errors import UserError, UserErrors, as_user_errors, nearest
from qexp.base.files import SaveError
from qexp.base.memory import leave_memory_to_the_system
from qexp.base.preemption import Preempted, listening
from qexp.base.progress_shown import shown

Settings = TypeVar("Settings")
OF_ALL = "Of every command: quiet=true prints results and errors alone, --json an object a line (docs/agents.md)."


def parse(kind: type[Settings], arguments: Sequence[str]) -> Settings:
    """Read KEY=VALUE into the settings dataclass `kind`; texts are taken as typed, other values are YAML; types are checked.

    Fields of a dataclass within it are dotted keys; `from_` is the key `from`, which is no name of a field in Python. `--KEY` is
    KEY=true of a key that is true or false.

    Raises:
        UserErrors: unknown keys, missing keys and wrong types, all together.
    """
    from pydantic import TypeAdapter, ValidationError

    hints = dict(_hints(kind))
    names = list(hints)
    values: dict[str, object] = {}
    errors: list[Exception] = []
    for argument in arguments:
        key, equals, text = _as_pair(argument, hints).partition("=")
        field = next((name for name in names if name.removesuffix("_") == key), "")
        if not equals or not field:
            typed = [name.removesuffix("_") for name in names]
            remedy = nearest(key, typed) or "Write KEY=VALUE."
            errors.append(UserError(key, "(unknown key)", allowed=f"one of {', '.join(typed)}", remedy=remedy))
        elif hints[field] in (str, str | None):  # as YAML the hash 12345678 would be an integer, and 1e234567 infinite
            _put(values, field, None if text in ("", "null") else os.path.expanduser(text))
        else:
            _put(values, field, _from_yaml(text))
    if errors:
        raise UserErrors(errors)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserErrors(as_user_errors(error, explain=partial(beyond_bounds, kind))) from None


def _as_pair(argument: str, hints: Mapping[str, object]) -> str:
    """`mlflow=true` for `--mlflow`, where the key is true or false; whatever else was typed as it is."""
    name = argument.removeprefix("--")
    return f"{name}=true" if name != argument and hints.get(name) is bool else argument


def _hints(kind: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key -> type of every field."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _hints(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def _from_yaml(text: str) -> object:
    """The value that a text stands for: a number, a truth value, a list, a text."""
    from omegaconf import OmegaConf

    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    assert isinstance(parsed, dict)
    return parsed["value"]


def _put(values: dict[str, object], key: str, value: object) -> None:
    """Set a dotted key in nested mappings."""
    *path, last = key.split(".")
    group = values
    for part in path:
        inner = group.setdefault(part, {})
        assert isinstance(inner, dict)
        group = inner
    group[last] = value


@dataclass(frozen=True, kw_only=True)
class _OfAll:
    """What every small command takes.

    Args:
        quiet: print results and errors alone.
    """

    quiet: bool = False


def run_verb(kind: type[Settings], run: Callable[[Settings], int | None], description: str) -> int:
    """Parse the command line into `kind` and run; returns the exit code (0 done, 2 bad input, 130 or 143 stopped by a signal).

    `quiet=true` and `--json` are of every command (`qexp.base.console`).
    """
    leave_memory_to_the_system()
    sys.argv[1:], as_json = without_json_flag(sys.argv[1:])
    with speaking(as_json=as_json):
        if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
            text = f"{description.strip()}\n\n{OF_ALL}"
            print_result(text, text=text)
            return 0
        try:
            own = [argument for argument in sys.argv[1:] if argument.partition("=")[0] != "quiet"]
            manner = parse(_OfAll, [argument for argument in sys.argv[1:] if argument not in own])
            settings = parse(kind, own)
            with listening(), speaking(quiet=manner.quiet), shown():
                return run(settings) or 0
        except (UserError, UserErrors) as error:
            report_error(error, *(f"qexp: {line}" for line in str(error).splitlines()), exit_code=2)
            return 2
        except SaveError as error:
            report_error(error, f"qexp: {error}", exit_code=1)
            return 1
        except (KeyboardInterrupt, Preempted) as stop:
            return report_stop(stop)
        except Exception as error:  # whose traceback is the interpreter's to print
            report_error(error, exit_code=1)
            raise
