"""Panels, their magnified axes and a legend on one figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qexp.reporting.figures.curves import is_reference
from qexp.reporting.figures.style import drawing
from qexp.reporting.frames.comparison import has_qat
from qexp.tracking.record import FLOAT_VARIANT

PANELS_PER_ROW = 3
Limits = tuple[float, float]


def panels_of(frame: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """What is drawn together: a training or a group of them, of one split and size."""
    parts = []
    measured = frame[["split", "n"]].drop_duplicates()
    for (label, split, n), part in frame.groupby([column, "split", "n"], sort=False):
        parts.append((label if len(measured) == 1 else f"{label}, {split} n={n}".lstrip(", "), part))
    return parts


def lay_out(
    panels: list[tuple[str, pd.DataFrame]],
    zooms: list[Limits | None],
    draw: Callable[[Axes, pd.DataFrame, Limits | None], None],
    handles: list[Line2D],
    heading: str,
    *,
    monospace: bool = False,
) -> Figure:
    """Lay panels out, each with a magnified axis above where any needs one; the legend beside them, of one panel below it.

    So a figure of one panel is narrow enough for a phone.

    Args:
        panels: title and rows of each.
        zooms: limits of the magnified axis of each panel, None where it needs none.
        draw: draws a panel's rows on an axis with these limits.
        handles: of the legend.
        heading: above the figure.
        monospace: set the legend in a font of fixed width, for numbers in it.
    """
    columns = min(len(panels), PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    magnified = any(zooms)
    longest = max(len(str(handle.get_label())) for handle in handles)
    entry = 0.75 + 0.068 * longest  # inches
    height, per_row = (5.4 if magnified else 3.8) * rows, 1
    if columns == 1:
        width = max(5.6, entry)
        per_row = int(width // entry)
        height += 0.3 + 0.17 * math.ceil(len(handles) / per_row)
    else:
        width, height = 4.0 * columns + 0.07 * max(0, longest - 18), max(height, 1.3 + 0.2 * len(handles))
    with drawing(width, height, heading, 11) as figure:
        outer = figure.add_gridspec(rows, columns)
        drawn: list[tuple[Hashable, Axes]] = []
        for number, ((label, part), limits) in enumerate(zip(panels, zooms, strict=True)):
            cell, subject = outer[number // columns, number % columns], (*part[["data", "model"]].iloc[0],)
            if magnified:
                grid = cell.subgridspec(2, 1, height_ratios=(1.25, 1))
                (upper,), (lower,) = grid.subplots(sharex=True, squeeze=False)
                draw(upper, part, limits)
                upper.set_xlabel("")
                upper.set_title(_magnified_title(label, part) if len(panels) > 1 else _near(part), loc="left")
                lower.set_title("all variants", loc="left")
                draw(lower, part, None)
                drawn += [((*subject, limits is not None), upper), ((*subject, False), lower)]
            else:
                axes = figure.add_subplot(cell)
                axes.set_title(label if len(panels) > 1 else "", loc="left")
                draw(axes, part, None)
                drawn.append(((*subject, False), axes))
        share_y(drawn)
        fonts = {"family": "monospace", "size": 8} if monospace else {}
        loc = "outside lower left" if columns == 1 else "outside right center"
        figure.legend(handles=handles, loc=loc, ncols=per_row, handlelength=3.4, prop=fonts)
    return figure


def share_y(drawn: Sequence[tuple[Hashable, Axes]]) -> None:
    """Give panels of one subject one scale: what is compared between them would else be read from two.

    Args:
        drawn: data, network and whether magnified, with the axes.
    """
    for subject in dict(drawn):
        panels = [axes for other, axes in drawn if other == subject]
        lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
        for axes in panels:
            axes.set_ylim(min(lows), max(highs))


def _near(part: pd.DataFrame) -> str:
    """What the magnified axis shows: the neighbourhood of the panel's first float network."""
    return f"near {next(iter(part['variant'][is_reference(part)]), FLOAT_VARIANT)}, magnified"


def _magnified_title(label: str, part: pd.DataFrame) -> str:
    """Short where labels are long."""
    return f"{label}: magnified" if has_qat(part) else f"{label}: {_near(part)}"
