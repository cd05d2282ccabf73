"""The result of a study as plain data: rows, checks of what was expected, and what its figures show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Check:
    """One expected number beside the measured one.

    Args:
        name: what is claimed.
        expected: what should come out, in words, with units.
        measured: what came out, in words, with units.
        passed: whether the claim holds.
        identity: it follows from mathematics and holds for any network; otherwise it was measured on one network, and another
            may differ.
        n: images that were scored for it; None where none were.
    """

    name: str
    expected: str
    measured: str
    passed: bool
    identity: bool = True
    n: int | None = None


expected = partial(Check, identity=False)  # what was measured on one network


def yes(value: bool) -> str:
    """`yes` or `no`."""
    return "yes" if value else "no"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure: points, or steps between them."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A figure of curves over one axis.

    Args:
        stem: of its files.
        marked: abscissas of vertical lines, by label.
        log_y: logarithmic ordinate.
    """

    stem: str
    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    marked: Mapping[str, float]
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A figure of horizontal bars.

    Args:
        stem: of its files.
        values: of each label, in this order from above.
        marked: abscissas of vertical lines, by label.
    """

    stem: str
    title: str
    x_label: str
    values: Mapping[str, float]
    marked: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a study.

    Args:
        headline: a sentence or two with the numbers that matter.
        subject: network, data and number of images.
        rows: of `table.csv`; all have the same keys.
        shown: those of the columns that `table.md` shows.
        checks: expected and measured.
        figures: of `figures/`.
        notes: sentences for the reader.
    """

    headline: str
    subject: str
    rows: tuple[Mapping[str, object], ...]
    shown: tuple[str, ...]
    checks: tuple[Check, ...]
    figures: tuple[Lines | Bars, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)
