"""Rows by name: all of one kind of thing that qexp offers (schemes, range methods, metrics), and the user's own by the same rows.

A row says everything that others ask of a thing, without torch, and names its code by an import string. Its class gives no
field a default: a row that leaves one out fails where it is written, at import. What a user adds is known by the text that names
the function which returns its row, `file.py:function`; so a spec or a setting that carries this text finds its row in every
process. Rejected: a registry filled by decorators (what is registered depends on what was imported, and asking for a name would
import torch), and entry points (a researcher's file would have to become an installed package).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

from qexp.base.errors import UserError, choose
from qexp.base.user_code import call_factory, state_of
from qexp.base.user_source import source_hash

CUSTOM = "custom"


@dataclass(frozen=True, kw_only=True)
class Info:
    """What every row has.

    Args:
        name: as it is typed, and as labels show it.
        summary: one line for people; documents and `--help` show it.
        code: what does the work: an import string `package.module:name`, or, in a user's row, the object itself.
    """

    name: str
    summary: str
    code: object

    def load(self) -> object:
        """What does the work: what the import string names, or the user's object."""
        return import_object(self.code) if isinstance(self.code, str) else self.code


RowT = TypeVar("RowT", bound=Info)


class Catalog(Mapping[str, RowT], Generic[RowT]):
    """Rows by name, in order; a name with a colon is a user's own, whose function is called once for each state of its file.

    Args:
        key: that a name is typed for (`quant`); a user's function is `<key>.factory`, or `factory_key`.
        kind: the class of the rows.
        rows: ours.
        check: `check(row, code)` raises UserError(field, value, ...) where a user's row contradicts itself or its code.
        factory_key: where the user's function is typed elsewhere.
    """

    def __init__(
        self,
        key: str,
        kind: type[RowT],
        rows: Iterable[RowT],
        *,
        check: Callable[[RowT, object], None] | None = None,
        factory_key: str | None = None,
    ) -> None:
        self.key, self.kind = key, kind
        self.factory_key = factory_key or f"{key}.factory"
        self._rows: dict[str, RowT] = {}
        for row in rows:
            assert row.name not in self._rows and row.name != CUSTOM and ":" not in row.name, row.name
            self._rows[row.name] = row
        self._check = check
        self._own: dict[tuple[object, ...], RowT] = {}

    def __getitem__(self, name: str) -> RowT:
        """The row of a name; of a user's text, the row that the function returns."""
        return self._own_row(name) if is_own(name) else self._rows[name]

    def __iter__(self) -> Iterator[str]:
        """Our names; a user's own are found, not listed."""
        return iter(self._rows)

    def __len__(self) -> int:
        """How many are ours."""
        return len(self._rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Our names, in order."""
        return tuple(self._rows)

    def names_where(self, holds: Callable[[RowT], bool]) -> tuple[str, ...]:
        """The names of our rows for which `holds` is true, in order, for messages."""
        return tuple(name for name, row in self._rows.items() if holds(row))

    def choose(self, name: str, *, factory: str | None = None, key: str | None = None) -> RowT:
        """The row that was asked for.

        Args:
            name: ours, `custom`, or a user's text.
            factory: the user's function, with `custom` and only with it.
            key: that the name was typed for; None takes the catalog's.

        Raises:
            UserError: an unknown name, with the nearest; `custom` without a function or the other way round; a function that
                fails, or whose row is none of this kind or contradicts itself.
        """
        key = key or self.key
        if name == CUSTOM:
            if factory is None:
                raise UserError(self.factory_key, None, allowed="package.module:function or file.py:function")
            return self._own_row(factory)
        if factory is not None:
            raise UserError(self.factory_key, factory, allowed="null", remedy=f"It belongs to {self.key}={CUSTOM}.")
        return self[name] if is_own(name) else self._rows[choose(key, name, [*self._rows, CUSTOM])]

    def load(self, name: str) -> object:
        """The code of a row: what its import string names, or the user's object."""
        return self[name].load()

    def identity(self, name: str) -> str:
        """What hashes know a row by: its name; a user's by name, function and the hash of its source, wherever the file lies."""
        return f"{self[name].name} {name.rpartition(':')[2]} {source_hash(name)}" if is_own(name) else name

    @contextmanager
    def trying(self, row: RowT) -> Iterator[str]:
        """While it lasts, the row is had under the name that this gives, so that a check can run code which asks for its row."""
        name = f"{row.name}:trial"
        self._own[state_of(name)] = row
        try:
            yield name
        finally:
            del self._own[state_of(name)]

    def _own_row(self, text: str) -> RowT:
        """The row of a user's function."""
        known = state_of(text)
        if known not in self._own:
            row = call_factory(self.factory_key, text, offered={})
            wanted = f"a function that returns a {self.kind.__module__}.{self.kind.__qualname__}"
            if not isinstance(row, self.kind):
                raise UserError(self.factory_key, text, allowed=wanted, remedy=f"It returned {type(row).__name__}.")
            if row.name in self._rows or row.name == CUSTOM or not row.name.isidentifier():
                allowed = "a name of its own: letters, digits and '_'"
                raise UserError(self.factory_key, text, allowed=wanted, remedy=f"Its name, {row.name!r}, must be {allowed}.")
            try:
                code = row.load()
                if self._check is not None:
                    self._check(replace(row, code=code), code)
            except UserError as error:
                remedy = f"Its row says {error}"
                raise UserError(self.factory_key, text, allowed="a row that holds", remedy=remedy) from error
            self._own[known] = row
        return self._own[known]


def is_own(name: str) -> bool:
    """True for the text of a user's function.

    >>> is_own("affine"), is_own("mine.py:squash")
    (False, True)
    """
    return ":" in name


def import_object(text: str) -> object:
    """What an import string of ours names.

    >>> import_object("math:floor")(2.5)
    2
    """
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)
