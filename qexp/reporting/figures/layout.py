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
from qexp.reporting.frames.protocol import planned_images
from qexp.tracking.record import FLOAT_VARIANT

PANELS_PER_ROW = 3
PAGE_HEIGHT, LEAST_HEIGHT, SMALL_PANEL = 11.0, 2.4, 3.6  # inches, of a figure and of panels
LONG_LABEL = 14  # letters
LABEL_HEIGHT = 0.145  # inches, of a line of text
Limits = tuple[float, float]


def panels_of(frame: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """What is drawn together: a training or a group of them, of one split and size."""
    parts = []
    planned = frame.assign(n=planned_images(frame))  # what a test stopped belongs to the others
    measured = planned[["split", "n"]].drop_duplicates()
    for (label, split, n), part in planned.groupby([column, "split", "n"], sort=False):
        parts.append((label if len(measured) == 1 else f"{label}, {split} n={n}".lstrip(", "), frame.loc[part.index]))
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
        handles: of the legend; none where lines are labelled directly.
        heading: above the figure.
        monospace: set the legend in a font of fixed width, for numbers in it.
    """
    rows = math.ceil(len(panels) / (columns := min(len(panels), PANELS_PER_ROW)))
    magnified = any(zooms)
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    entry = 0.75 + 0.068 * longest  # inches
    panel = max(LEAST_HEIGHT, min(5.4 if magnified else 3.8, (PAGE_HEIGHT - 0.6) / rows))
    height, per_row = panel * rows, 1
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
        if panel < SMALL_PANEL:
            shorten_labels([axes for _, axes in drawn])
        fonts = {"family": "monospace", "size": 8} if monospace else {}
        loc = "outside lower left" if columns == 1 else "outside right center"
        if handles:
            figure.legend(handles=handles, loc=loc, ncols=per_row, handlelength=3.4, prop=fonts)
    return figure


def shorten_labels(drawn: Sequence[Axes]) -> None:
    """Name the y axis in a word and at the left edge alone, as the labels of low panels would lie on each other."""
    for axes in drawn:
        place = axes.get_subplotspec()
        left = place is not None and place.get_topmost_subplotspec().is_first_col()
        axes.set_ylabel("Prec@1" if left else "", fontsize=8)


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]], height: float) -> None:
    """Labels beside the last points of lines, in their colours, moved up and down until none covers another.

    Args:
        axes: with its limits set.
        ends: text, abscissa, ordinate and colour of each.
        height: of the axes, about, inches.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * LABEL_HEIGHT / height
    falling = sorted(range(len(ends)), key=lambda number: -ends[number][2])
    places: dict[int, float] = {}
    for above, number in zip([None, *falling], falling, strict=False):
        places[number] = ends[number][2] if above is None else min(ends[number][2], places[above] - gap)
    # As far up as keeps them, on average, where their points are.
    moved = sum(ends[number][2] - place for number, place in places.items()) / max(1, len(ends))
    for number, (text, x, y, color) in enumerate(ends):
        offset = (6, (places[number] + moved - y) * 72 * height / (high - low))
        axes.annotate(
            text, (x, y), xytext=offset, textcoords="offset points", va="center", color=color, fontsize=8, annotation_clip=False
        )


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
    return f"{label}: magnified" if has_qat(part) or len(label) > LONG_LABEL else f"{label}: {_near(part)}"
