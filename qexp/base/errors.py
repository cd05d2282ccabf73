"""Mistakes of the user, reported once and clearly.

A `UserError` names the key, the value that was given, what is allowed and the remedy; entry modules print it without a
traceback and exit with code 2. Everything else that is raised is our own fault and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from os.path import commonprefix
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_MISSING = ("missing", "missing_argument")  # pydantic's names for a value that was not given


class UserError(ValueError):
    """One mistake in what the user asked for.

    Args:
        key: the configuration key, dotted (`train.lr`), or the name of what is wrong (a file, a rule).
        value: what was given.
        allowed: what would be accepted, in words or as a list of choices.
        remedy: what to do about it; empty where `allowed` says it all.

    >>> str(UserError("bits", 64, allowed="an integer from 1 to 16"))
    'bits=64: allowed is an integer from 1 to 16'
    """

    def __init__(self, key: str, value: object, *, allowed: str | Iterable[str] = "", remedy: str = "") -> None:
        self.key, self.value, self.remedy = key, value, remedy
        self.allowed = allowed if isinstance(allowed, str) else "one of " + ", ".join(allowed)
        parts = [f"{key}={str(value).lower() if isinstance(value, bool) else value}"]  # as it was typed
        if self.allowed:
            parts.append(f"allowed is {self.allowed}")
        text = ": ".join(parts)
        super().__init__(f"{text}. {remedy}" if remedy else text)


class UserErrors(ValueError):
    """Several mistakes, reported together, so that all can be corrected at once."""

    def __init__(self, errors: Iterable[Exception]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(str(error) for error in self.errors))

    @property
    def mistakes(self) -> list[UserError]:
        """All of them by key, value and remedy, each once; without those that are a text alone."""
        return once(error for error in self.errors if isinstance(error, UserError))


def once(mistakes: Iterable[UserError]) -> list[UserError]:
    """Mistakes without those that say what another says."""
    return list({str(mistake): mistake for mistake in mistakes}.values())


def as_user_errors(
    error: ValidationError, *, prefix: str = "", explain: Callable[[str, ErrorDetails], UserError | None] | None = None
) -> list[UserError]:
    """What pydantic refused, one error for each value; a `UserError` raised by a check of ours comes back as it is.

    Args:
        error: as pydantic raised it.
        prefix: put before each key (`hydra.launcher.`).
        explain: `explain(key, details)` gives the error where the caller knows more than pydantic says, else None.
    """
    errors = []
    for details in error.errors():
        key = prefix + ".".join(str(part).removesuffix("_") for part in details["loc"])  # the field of the key `from` is `from_`
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            errors.append(cause)
        elif explain is not None and (explained := explain(key, details)) is not None:
            errors.append(explained)
        elif details["type"] in _MISSING:
            errors.append(UserError(key, "(missing)", allowed="a value"))
        else:
            errors.append(UserError(key, details["input"], allowed=details["msg"].removeprefix("Input should be ")))
    return errors


def nearest(name: str, choices: Iterable[str]) -> str:
    """The sentence that suggests the closest of `choices`, or an empty string where none is close.

    >>> nearest("bitz", ["bits", "mode"])
    'Did you mean bits?'
    """
    close = difflib.get_close_matches(name, list(choices), n=10, cutoff=0.6)
    if not close:
        return ""
    # Of names equally close, the one that begins alike: resnet21 is meant to be resnet20 rather than resnet32.
    best = max(close, key=lambda other: (difflib.SequenceMatcher(None, other, name).ratio(), len(commonprefix([name, other]))))
    return f"Did you mean {best}?"


def choose(key: str, name: str, table: Iterable[str]) -> str:
    """Return `name` if the table has it, else raise the `UserError` that lists the choices."""
    choices = list(table)
    if name not in choices:
        raise UserError(key, name, allowed=sorted(choices), remedy=nearest(name, choices))
    return name


def raised(error: BaseException) -> str:
    """The sentence that says what code of the user's raised.

    >>> raised(KeyError("lost"))
    "It raised KeyError: 'lost'."
    """
    lines = str(error).strip().splitlines()
    return f"It raised {type(error).__name__}: {lines[0].rstrip('.') if lines else '(no message)'}."


class JobsFailed(RuntimeError):
    """Some jobs of a sweep failed; the reason of each is printed before.

    Args:
        message: how many, and what to do.
        exit_code: 2 where all that failed is the user's to mend.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RankFailed(RuntimeError):
    """A rank failed in a job; the process group cannot be used again.

    Args:
        message: which, and why.
        mistake: it is the user's to mend.
    """

    def __init__(self, message: str, *, mistake: bool = False) -> None:
        super().__init__(message)
        self.exit_code = 2 if mistake else 1


def is_mistake(error: BaseException) -> bool:
    """True for what is the user's to mend, on this rank or another."""
    return isinstance(error, UserError | UserErrors) or (isinstance(error, RankFailed) and error.exit_code == 2)
