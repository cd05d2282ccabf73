"""What is measured of a network, a row each; torch-free. Records, tables, MLflow's keys and `verify` follow the rows.

A number is made in one of three places, which `reads` names. `logits`: while images are scored, of each batch; the user's own are
of this kind. `predictions`: of what is stored of each image, so that `verify` makes it again. `per_class`: of the table of that
name, when a report is written. What is not one number (`gives`) is a table or a matrix; it is made when a report is written, of
stored predictions, and so of runs that are long done too. Rejected: storing tables and matrices in the records, where every epoch
of every variant would hold what is looked at once, and what stored predictions give anyway.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from qexp.base.catalog import Catalog, Info, is_own
from qexp.base.checks import check_types
from qexp.base.errors import UserError, choose
from qexp.base.files import canonical_json

KEY = "evaluate.metrics"
FORMS = ("loss", "small")  # of a cell that no format specification makes: see `qexp.reporting.tables.metric_cells`


@dataclass(frozen=True, kw_only=True)
class MetricInfo(Info):
    """A metric. Its name is the field of a record, the column of a table and the key in MLflow.

    `code` is, by what it reads: of logits `(logits [N, C] float32, labels [N] int64, reference logits [N, C] or None) -> [N]`,
    a value per image; of predictions the same of `(predictions, the float network's or None)`, of which `right`, `right5`
    and `log_prob` are read. Tables and matrices are made by `(Compared, ...) -> DataFrame`, see `qexp.reporting.frames.compared`,
    and numbers that read a table by `(the variant's rows) -> number`.

    Args:
        title: of the column.
        unit: of the number.
        direction: which way is better.
        form: of a cell: a format specification (`.2f`), or one of `FORMS`.
        gives: a number, a text, or what is not one value: a table, or a matrix that is drawn.
        reads: what the code is given.
        finish: None where the metric is the mean over images; else `(sums over images, n) -> number` of several values per
            image, for which the code returns a tuple of [N]: an import string or the object itself.
        needs_reference: it compares with the float network; elsewhere the code is given None.
        on_float: in the row of the float network it is a `value`, `hidden` from people as it says nothing, or left `empty`.
        averaged: over seeds: mean and standard deviation.
        to_mlflow: a point per epoch.
        stored: what of stored predictions gives it again: predicted `classes`, which lie beside a table too, log-probabilities
            (`log_prob`), or nothing (`never`).
        always: every evaluation has it; else it is asked for by `evaluate.metrics`.
        file: of a table or a matrix, beside `table.csv`.
    """

    title: str
    unit: Literal["percent", "points", "nats", "dB", "count", "none"]
    direction: Literal["higher", "lower", "none"]
    form: str
    gives: Literal["number", "text", "table", "matrix"]
    reads: Literal["logits", "predictions", "per_class"]
    finish: object
    needs_reference: bool
    on_float: Literal["value", "hidden", "empty"]
    averaged: bool
    to_mlflow: bool
    stored: Literal["classes", "log_prob", "never"]
    always: bool
    file: str | None

    @property
    def in_record(self) -> bool:
        """True where an evaluation measures it; the others are made when a report is written."""
        return self.gives == "number" and self.reads != "per_class"

    @property
    def explained(self) -> str:
        """One line for the reader of a table."""
        better = "" if self.direction == "none" else f", {self.direction} is better"
        return f"{self.title}: {self.summary.rstrip('.')} ({'no unit' if self.unit == 'none' else self.unit}{better})."


def check_row(row: MetricInfo, code: object) -> None:
    """Raise UserError where a user's row contradicts itself; what its code returns is tried by `qexp.engine.metrics`.

    Args:
        row: the user's.
        code: of it.
    """
    check_types(row)
    for name, wanted in OWN.items():
        if getattr(row, name) != wanted:
            raise UserError(name, getattr(row, name), allowed=f"{wanted} for a metric of your own")
    if not callable(code):
        raise UserError("code", code, allowed="a function")
    if not row.title.strip():
        raise UserError("title", row.title, allowed="a heading")
    if row.on_float != "value" and not row.needs_reference:
        raise UserError("on_float", row.on_float, allowed="value, as it is not compared with the float network")
    if row.form not in FORMS:
        try:
            format(1.5, row.form)
        except ValueError:
            raise UserError("form", row.form, allowed=f"a format such as .2f, or {' or '.join(FORMS)}") from None


# What a metric of the user's own is; of logits alone, since a report does not run the user's code.
OWN = {"gives": "number", "reads": "logits", "stored": "never", "always": False, "file": None}

METRICS = Catalog(
    KEY,
    MetricInfo,
    [
        MetricInfo(
            name="prec1", title="Prec@1", summary="Share of images whose first prediction is right.",
            unit="percent", direction="higher", form=".2f", gives="number", reads="predictions",
            code="qexp.engine.scores:prec1", finish=None, needs_reference=False, on_float="value", averaged=True,
            to_mlflow=True, stored="classes", always=True, file=None,
        ),
        MetricInfo(
            name="prec5", title="Prec@5", summary="Share of images whose class is among the first five predictions.",
            unit="percent", direction="higher", form=".2f", gives="number", reads="predictions",
            code="qexp.engine.scores:prec5", finish=None, needs_reference=False, on_float="value", averaged=True,
            to_mlflow=True, stored="classes", always=True, file=None,
        ),
        MetricInfo(
            name="loss", title="loss", summary="Mean cross-entropy.",
            unit="nats", direction="lower", form="loss", gives="number", reads="predictions",
            code="qexp.engine.scores:loss", finish=None, needs_reference=False, on_float="value", averaged=True,
            to_mlflow=True, stored="log_prob", always=True, file=None,
        ),
        MetricInfo(
            name="delta_prec1", title="delta", summary="Prec@1 less that of the float network of the same epoch.",
            unit="points", direction="higher", form="+.2f", gives="number", reads="predictions",
            code="qexp.engine.scores:prec1_of_both", finish="qexp.engine.scores:difference", needs_reference=True,
            on_float="hidden", averaged=True, to_mlflow=True, stored="classes", always=True, file=None,
        ),
        MetricInfo(
            name="kl", title="KL", summary="Mean over images of KL(float network || this one).",
            unit="nats", direction="lower", form="small", gives="number", reads="logits",
            code="qexp.engine.metrics:kl", finish=None, needs_reference=True, on_float="empty", averaged=False,
            to_mlflow=True, stored="never", always=True, file=None,
        ),
        MetricInfo(
            name="logit_sqnr_db", title="SQNR dB", summary="10 log10(sum f^2 / sum (f - q)^2) of logits f of the float network.",
            unit="dB", direction="higher", form=".1f", gives="number", reads="logits",
            code="qexp.engine.metrics:signal_and_noise", finish="qexp.engine.metrics:decibels", needs_reference=True,
            on_float="empty", averaged=False, to_mlflow=True, stored="never", always=True, file=None,
        ),
        MetricInfo(
            name="per_class", title="Classes", summary="Prec@1 of each class, and what it lost against the float network.",
            unit="none", direction="none", form="", gives="table", reads="predictions",
            code="qexp.reporting.statistics.classes:per_class", finish=None, needs_reference=True, on_float="value",
            averaged=False, to_mlflow=False, stored="classes", always=False, file="classes.csv",
        ),
        MetricInfo(
            name="confusion", title="What the float network says, and what the copy says instead",
            summary="Images by the float network's prediction and by that of the variant that lost most.",
            unit="count", direction="none", form="", gives="matrix", reads="predictions",
            code="qexp.reporting.statistics.classes:confusion", finish=None, needs_reference=True, on_float="empty",
            averaged=False, to_mlflow=False, stored="classes", always=False, file="confusion.csv",
        ),
        MetricInfo(
            name="worst_class", title="worst class", summary="The class with the lowest Prec@1.",
            unit="none", direction="none", form="", gives="text", reads="per_class",
            code="qexp.reporting.statistics.classes:worst_class", finish=None, needs_reference=False, on_float="value",
            averaged=False, to_mlflow=False, stored="classes", always=False, file=None,
        ),
        MetricInfo(
            name="worst_class_lost", title="lost most", summary="The class that lost most Prec@1 against the float network.",
            unit="none", direction="none", form="", gives="text", reads="per_class",
            code="qexp.reporting.statistics.classes:lost_most", finish=None, needs_reference=True, on_float="empty",
            averaged=False, to_mlflow=False, stored="classes", always=False, file=None,
        ),
        MetricInfo(
            name="worst_class_delta", title="its delta", summary="Its Prec@1 less that of the float network on the same images.",
            unit="points", direction="higher", form="+.2f", gives="number", reads="per_class",
            code="qexp.reporting.statistics.classes:worst_delta", finish=None, needs_reference=True, on_float="empty",
            averaged=False, to_mlflow=False, stored="classes", always=False, file=None,
        ),
        MetricInfo(
            name="worst_class_low", title="from", summary="Lower end of its interval, at 95 % for all classes at once.",
            unit="points", direction="higher", form="+.2f", gives="number", reads="per_class",
            code="qexp.reporting.statistics.classes:worst_low", finish=None, needs_reference=True, on_float="empty",
            averaged=False, to_mlflow=False, stored="classes", always=False, file=None,
        ),
        MetricInfo(
            name="worst_class_high", title="to", summary="Upper end of that interval.",
            unit="points", direction="higher", form="+.2f", gives="number", reads="per_class",
            code="qexp.reporting.statistics.classes:worst_high", finish=None, needs_reference=True, on_float="empty",
            averaged=False, to_mlflow=False, stored="classes", always=False, file=None,
        ),
    ],
    check=check_row,
    factory_key=KEY,
)  # fmt: skip

ALWAYS = tuple(row for row in METRICS.values() if row.always)  # of every evaluation
FEW = 5  # classes, of which Prec@5 counts all
ASKED_FOR = METRICS.names_where(lambda row: not row.always and row.reads != "per_class")


def asked(names: Iterable[str]) -> tuple[MetricInfo, ...]:
    """The rows that `evaluate.metrics` asks for.

    Args:
        names: of ours, or texts of the user's functions.

    Raises:
        UserError: an unknown name, a function whose row does not hold, or two of one name.
    """
    rows = [METRICS[name] if is_own(name) else METRICS[choose(KEY, name, [*ASKED_FOR, "FILE.py:FUNCTION"])] for name in names]
    for place, row in enumerate(rows):
        if row.name in (other.name for other in rows[:place]):
            raise UserError(KEY, row.name, allowed="each metric once")
    return tuple(rows)


def prec5_of_few(class_count: int) -> tuple[str, ...]:
    """What to say of Prec@5 where any five predictions hold the right one; nothing for more classes.

    Args:
        class_count: width of the logits; 0 where it is not known.
    """
    return (f"Prec@5 of {class_count} classes is 100 whatever is predicted.",) if 0 < class_count <= FEW else ()


def described(rows: Iterable[MetricInfo]) -> str:
    """Rows as JSON, without their code: what a report, which does not run the user's, shows their columns with."""
    return canonical_json(
        [{name: value for name, value in asdict(row).items() if name not in ("code", "finish")} for row in rows]
    )


def restored(text: str) -> Sequence[MetricInfo]:
    """What `described` wrote."""
    known = {item.name for item in fields(MetricInfo)}
    plain = asdict(METRICS["prec1"]) | OWN | {"code": None, "finish": None}  # for what an older version did not write
    return [MetricInfo(**plain | {name: value for name, value in row.items() if name in known}) for row in json.loads(text)]
