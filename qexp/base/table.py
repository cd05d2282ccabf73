"""Tables that people read: typed columns, a value for each row, and one renderer for each target but CSV.

Rejected: the library `tabulate`. Of our tables it writes Markdown alone alike: it reads cells that look like numbers (`1e-5`,
`1/2`, `007`) back into numbers unless that is turned off for each column, pads Markdown, aligns on the decimal point, and its
`latex_booktabs` escapes no title. What is left is shorter than what would switch that off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import Markup

from qexp.base.text import size_text

Kind = Literal["text", "count", "number", "percent", "points", "size", "time"]
Align = Literal["left", "right", "any"]
Form = str | Callable[[Any], str]  # a format specification, or what makes a value a text
FORMS: dict[Kind, Form] = {
    "text": str, "count": "d", "number": ".4g", "percent": ".2f", "points": "+.2f", "size": size_text, "time": ".3f",
}  # fmt: skip
_RULES: dict[Align, str] = {"left": ":--", "right": "--:", "any": "---"}
_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Args:
        name: for programs; the field of a record that it shows, unless `value` says what.
        title: for people.
        kind: what its values are: it decides form and alignment where these are None.
        form: how a value is written.
        align: `any` leaves it to the reader's program.
        value: a record -> the value.
        empty: what stands where a value is None; what is no number is `nan`.
        optional: left out where no row has anything.
        marks: text of a cell -> its mark, a class of the page's style.
    """

    name: str
    title: str
    kind: Kind
    form: Form | None = None
    align: Align | None = None
    value: Callable[[Any], object] | None = None
    empty: str = ""
    optional: bool = False
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def side(self) -> Align:
        """Texts stand on the left, numbers on the right."""
        return self.align or ("left" if self.kind == "text" else "right")

    def of(self, record: Any) -> object:
        """The value of a record, which may be a mapping."""
        if self.value is not None:
            return self.value(record)
        return record.get(self.name) if isinstance(record, Mapping) else getattr(record, self.name)

    def text(self, value: Any) -> str:
        """A value as it is read.

        >>> Column(name="delta_prec1", title="delta", kind="points").text(-0.5)
        '-0.50'
        """
        if value is None:
            return self.empty
        form = self.form or FORMS[self.kind]
        return format(value, form) if isinstance(form, str) else form(value)


@dataclass(frozen=True)
class Table:
    """Columns, and for each row a value for each of them.

    Args:
        columns: in order.
        rows: values.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[object, ...], ...]

    @classmethod
    def of(cls, columns: Sequence[Column], records: Iterable[Any]) -> Table:
        """The table of records, without the optional columns that have nothing."""
        records = list(records)
        return cls.of_values([(column, [column.of(record) for record in records]) for column in columns])

    @classmethod
    def of_values(cls, columns: Iterable[tuple[Column, Sequence[object]]]) -> Table:
        """The table of columns with their values, without the optional ones that have nothing."""
        kept = [(column, values) for column, values in columns if not column.optional or any(map(column.text, values))]
        return cls(tuple(column for column, _ in kept), tuple(zip(*(values for _, values in kept), strict=True)))

    def without(self, name: str) -> Table:
        """The table without a column."""
        kept = [number for number, column in enumerate(self.columns) if column.name != name]
        return Table(tuple(self.columns[number] for number in kept), tuple(tuple(row[n] for n in kept) for row in self.rows))

    @property
    def titles(self) -> list[str]:
        """One for each column."""
        return [column.title for column in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """The texts of each row."""
        return [[column.text(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]


def lines(table: Table, *, titles: bool = True, rule: bool = False, indent: str = "") -> list[str]:
    """Lines of fixed width, for a terminal.

    Args:
        table: to show.
        titles: begin with them.
        rule: draw a line of dashes below them.
        indent: before each line.
    """
    texts = [table.titles] * titles + table.cells
    widths = [max(map(len, column), default=0) for column in zip(*texts, strict=True)]
    sides = [column.side == "right" for column in table.columns]
    padded = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width) for text, width, right in zip(row, widths, sides, strict=True)
        )
        for row in texts
    ]
    if rule:
        padded.insert(1, "  ".join("-" * width for width in widths))
    return [indent + line.rstrip() for line in padded]


def markdown_table(table: Table) -> str:
    """A table of Markdown."""
    rows = [table.titles, [_RULES[column.side] for column in table.columns], *table.cells]
    return without_html("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows))


def markdown_text(parts: Iterable[str]) -> str:
    """A document of Markdown: its parts with a blank line between them."""
    return without_html("\n\n".join(parts)) + "\n"


def without_html(markdown: str) -> str:
    """Markdown whose `<` begin no element: a name in it may be anybody's.

    >>> without_html("p <1e-300 of <script>")
    'p <1e-300 of &lt;script>'
    """
    return re.sub("<(?=[a-zA-Z/!?])", "&lt;", markdown)


def latex_table(table: Table) -> str:
    r"""A `tabular` of LaTeX with the rules of the package booktabs.

    >>> print(latex_table(Table((Column(name="a", title="share %", kind="percent"),), ((12.5,),))))
    \begin{tabular}{r}
    \toprule
    share \% \\
    \midrule
    12.50 \\
    \bottomrule
    \end{tabular}
    """
    sides = "".join("r" if column.side == "right" else "l" for column in table.columns)
    titles, *rows = [_guarded(" & ".join(map(_latex, row))) + r" \\" for row in (table.titles, *table.cells)]
    start, end = f"\\begin{{tabular}}{{{sides}}}", r"\end{tabular}"
    return "\n".join([start, r"\toprule", titles, r"\midrule", *rows, r"\bottomrule", end])


def _guarded(line: str) -> str:
    """A row that begins with `[` or `*`, which the end of the row before it would take for its own argument."""
    return f"{{}}{line}" if line.startswith(("[", "*")) else line


def _latex(text: str) -> str:
    """Text without anything that LaTeX would obey."""
    return "".join(_LATEX.get(char, char) for char in text)


def html_table(table: Table, kinds: Sequence[str] = ()) -> Markup:
    """A table of the page.

    Args:
        table: to show.
        kinds: the class of each row; none where rows are alike.
    """
    titles = "".join(_cell("th", column.side, column.title) for column in table.columns)
    lines = ["<table>", f"<thead><tr>{titles}</tr></thead>", "<tbody>"]
    for number, row in enumerate(table.cells):
        cells = [
            _cell("td", column.side, Markup('<span class="mark {}">{}</span>').format(column.marks[text], text))
            if text in column.marks
            else _cell("td", column.side, text)
            for column, text in zip(table.columns, row, strict=True)
        ]
        start = Markup('<tr class="{}">').format(kinds[number]) if kinds else "<tr>"
        lines.append(f"{start}{''.join(cells)}</tr>")
    return Markup("\n".join([*lines, "</tbody>", "</table>"]))


def _cell(tag: str, side: Align, content: str) -> str:
    """A cell; what is no markup yet is escaped."""
    left = ' class="left"' if side == "left" else ""
    return Markup(f"<{tag}{left}>{{}}</{tag}>").format(content)


RENDERERS: dict[str, Callable[[Table], str]] = {"latex": latex_table, "markdown": markdown_table, "html": html_table}
