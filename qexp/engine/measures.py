"""Rows of `qexp.config.metrics` with their code, and their sums: exact, so that they do not hang on the order of images.

No torch here: `verify` runs the metrics of stored predictions where only tables are at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qexp.base.catalog import import_object, is_own
from qexp.base.user_source import source_hash
from qexp.config.metrics import ALWAYS, MetricInfo, asked
from qexp.engine.scores import Answers


@dataclass(frozen=True)
class Measure:
    """A metric with its code.

    Args:
        row: of it.
        code: as `MetricInfo` says.
        finish: of the sums; the mean where the row has none.
        source: hash of the user's file; None of ours, which the evaluator's version answers for.
    """

    row: MetricInfo
    code: Callable[..., Any]
    finish: Callable[[Sequence[float], int], float | None]
    source: str | None = None

    def columns(self, this: Any, *more: Any) -> tuple[Any, ...]:
        """Values per image [N], one or several; `more` is what the code takes behind what it scores."""
        values = self.code(this, *more)
        return values if isinstance(values, tuple) else (values,)

    def total(self, columns: Sequence[Any]) -> float | None:
        """The metric over all images, whatever their order."""
        return self.finish([_fsum(column.tolist()) for column in columns], len(columns[0]))


def measures(names: Sequence[str] = ()) -> tuple[Measure, ...]:
    """What an evaluation measures: what every one does, and what is asked for; what reports make is left to them.

    Args:
        names: of `evaluate.metrics`.
    """
    texts = (*(row.name for row in ALWAYS), *names)
    rows = zip(texts, (*ALWAYS, *asked(names)), strict=True)
    return tuple(measure(row, source_hash(text) if is_own(text) else None) for text, row in rows if row.in_record)


def measure(row: MetricInfo, source: str | None = None) -> Measure:
    """A row with its code imported.

    Args:
        row: of the metric.
        source: hash of the user's file.
    """
    code, finish = (import_object(part) if isinstance(part, str) else part for part in (row.code, row.finish))
    return Measure(row, code, _mean if finish is None else finish, source)  # type: ignore[arg-type]  # a row's code is an object


def against(measured: Iterable[Measure], predictions: Answers, reference: Answers) -> dict[str, float | None]:
    """The metrics that compare what was predicted with what the float network predicts.

    Args:
        measured: of `measures`.
        predictions: of the network that is scored.
        reference: the float network's.
    """
    rows = [one for one in measured if one.row.reads == "predictions" and one.row.needs_reference]
    return {one.row.name: one.total(one.columns(predictions, reference)) for one in rows}


def _mean(sums: Sequence[float], n: int) -> float:
    return sums[0] / n


def _fsum(values: Sequence[float]) -> float:
    """The correctly rounded sum, whatever the order; nan where it holds both infinities."""
    try:
        return math.fsum(values)
    except ValueError:
        return math.nan
