"""`results/<study>/`: table, checks and figures of a study of a document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qexp.base.files import write_texts
from qexp.base.table import Column, Table, markdown_table, markdown_text
from qexp.reporting.figures.style import drawing, save, spread_colors
from qexp.reporting.tables.render import csv_text
from qexp.studies.outcome import Bars, Check, Lines, Outcome


def write_study(name: str, outcome: Outcome, *, command: str, results_dir: Path) -> Path:
    """Write `table.csv`, `checks.csv`, `table.md` and `figures/`; returns the folder.

    Args:
        name: of the study.
        outcome: its result.
        command: that made it, for `table.md`.
        results_dir: parent of the folder.
    """
    folder = results_dir / name
    table, checks = pd.DataFrame(list(outcome.rows)), pd.DataFrame([vars(check) for check in outcome.checks])
    texts = {"table.csv": csv_text(table), "checks.csv": csv_text(checks), "table.md": _markdown(name, outcome, command)}
    write_texts(folder, texts)
    for figure in outcome.figures:
        save(draw_bars(figure) if isinstance(figure, Bars) else draw_lines(figure), folder / "figures" / figure.stem)
    return folder


def format_checks(checks: Iterable[Check]) -> str:
    """The checks as text for the screen, two lines each."""
    lines = []
    for check in checks:
        kind = "identity" if check.identity else "expected"
        lines.append(f"{'pass' if check.passed else 'FAIL'}  {kind}  {check.name}")
        lines.append(f"                expected {check.expected}; measured {check.measured}")
    return "\n".join(lines)


def draw_lines(lines: Lines) -> Figure:
    """Curves over one axis."""
    with drawing(6.2, 3.8) as figure:
        axes = figure.subplots()
        for curve, color in zip(lines.curves, spread_colors(len(lines.curves)), strict=True):
            axes.plot(curve.x, curve.y, color=color, label=curve.label, linewidth=1.6)
        _mark(axes, lines.marked)
        axes.set(title=lines.title, xlabel=lines.x_label, ylabel=lines.y_label, yscale="log" if lines.log_y else "linear")
        axes.legend()
    return figure


def draw_bars(bars: Bars) -> Figure:
    """Horizontal bars with their values beside them."""
    with drawing(7.4, 1.4 + 0.24 * len(bars.values)) as figure:
        axes = figure.subplots()
        labels, values = list(bars.values), list(bars.values.values())
        patches = axes.barh(range(len(labels)), values, color=spread_colors(1)[0], height=0.7)
        behind = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.5}  # marked lines go on behind a number
        axes.bar_label(patches, fmt="%.1f", padding=3, fontsize=7, bbox=behind)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        _mark(axes, bars.marked)
        axes.set(title=bars.title, xlabel=bars.x_label)
        if bars.marked:
            figure.legend(loc="outside lower right", ncols=len(bars.marked))
    return figure


def _mark(axes: Axes, marked: Mapping[str, float]) -> None:
    for (label, position), line in zip(marked.items(), ("--", ":", "-."), strict=False):
        axes.axvline(position, color="#000000", linewidth=1.0, linestyle=line, label=label)


def _markdown(name: str, outcome: Outcome, command: str) -> str:
    shown = [Column(name=name, title=name, kind="text", align="any", form=_cell) for name in outcome.shown]
    checks, numbers = Table.of(_CHECK_COLUMNS, outcome.checks), Table.of(shown, outcome.rows)
    parts = [f"# {name}", outcome.headline, f"{outcome.subject}."]
    parts += ["## What was expected", markdown_table(checks), "## Numbers", markdown_table(numbers)]
    parts += [f"- {note}" for note in outcome.notes]
    return markdown_text([*parts, f"Made by `{command}`."])


_CHECK_COLUMNS = (
    Column(name="passed", title="", kind="text", align="any", form=lambda passed: "pass" if passed else "FAIL"),
    Column(name="identity", title="kind", kind="text", align="any", form=lambda holds: "identity" if holds else "expected"),
    Column(name="name", title="claim", kind="text", align="any"),
    Column(name="expected", title="expected", kind="text", align="any"),
    Column(name="measured", title="measured", kind="text", align="any"),
)


def _cell(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
