"""Prec@1 of every variant of one network, a line each, with its interval.

Against bits, methods that share a width lie on each other; here each has its own line.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qexp.reporting.figures.bits_lines import MAX_LINES
from qexp.reporting.figures.layout import PAGE_HEIGHT
from qexp.reporting.figures.marks import percent_text, tell
from qexp.reporting.figures.style import (
    CLOSE_POINTS,
    drawing,
    legend_entry,
    mean_words,
    padded,
    spread_colors,
    title,
    zoom_limits,
)
from qexp.reporting.frames.names import shared_words
from qexp.reporting.frames.protocol import planned_images
from qexp.reporting.frames.repeats import over_draws
from qexp.reporting.frames.summary import family_keys, is_float, summarize
from qexp.reporting.statistics.paired import wilson_ends

ROW_HEIGHT, FONT_SIZE = 0.16, 7.5  # inches, points
MARGINS = 1.6  # inches, of heading, axis and legend
MAX_ROWS = int((PAGE_HEIGHT - MARGINS) / ROW_HEIGHT)


def prec1_by_variant(records: pd.DataFrame, page: int = 1) -> Figure | None:
    """Prec@1 at the last epoch and its 95 % Wilson interval, a line per variant in the table's order; colours by weight bits.

    At most a page tall: more variants go on in further figures, each on the same axis. Of several draws of calibration images it
    is their mean, and a thick line of one standard deviation of them up and down.
    None where a plot against bits shows all there is: one network of few families, each with one variant of a width; or several
    trainings, which are compared epoch by epoch; or beyond the last page.

    Args:
        records: of `load_records`.
        page: from 1 on.
    """
    table = over_draws(summarize(records))
    variants = table[~is_float(table)].reset_index(drop=True)  # by number from the top
    if len(table.assign(n=planned_images(table))[["training", "split", "n"]].drop_duplicates()) > 1 or variants.empty:
        return None
    keys = list(zip(family_keys(variants), variants["mode"], variants["bits"], strict=True))
    pages = math.ceil(len(variants) / MAX_ROWS)
    if page > pages or (len(set(keys)) == len(keys) and len(set(family_keys(variants))) <= MAX_LINES):
        return None
    float_prec1 = float(table["prec1"][is_float(table)].iloc[0])
    words, means = shared_words(table), mean_words(table)
    variants = variants.assign(label=[label.without(words).text for label in variants["named"]]).join(wilson_ends(variants))
    ends = {str(index): pd.Series([value]) for index, value in variants["prec1"].items()}
    magnify = zoom_limits(ends, pd.Series([float_prec1])) is not None
    near = variants[(variants["prec1"] - float_prec1).abs() <= CLOSE_POINTS]
    widths = sorted(set(variants["bits"]), reverse=True)
    colors = dict(zip(widths, spread_colors(len(widths)), strict=True))
    per_page = math.ceil(len(variants) / pages)
    shown = variants.iloc[(page - 1) * per_page : page * per_page].reset_index(drop=True)
    part = f" ({page} of {pages})" if pages > 1 else ""
    drawn = "; thick: one sd over draws" if "draws_sd" in variants else ""
    heading = title(table, f"Prec@1 of every variant{part}, with 95 % intervals{drawn}")
    heading += f"\nall {' '.join(words)}" if words else ""
    with drawing(8.6 if magnify else 6.6, MARGINS + ROW_HEIGHT * len(shown), heading, 11) as figure:
        whole, *magnified = figure.subplots(1, 2 if magnify else 1, sharey=True, squeeze=False)[0]
        _draw(whole, shown, colors, float_prec1, _limits(variants, float_prec1))
        if magnified:
            shown_near = shown[(shown["prec1"] - float_prec1).abs() <= CLOSE_POINTS]
            _draw(magnified[0], shown_near, colors, float_prec1, _limits(near, float_prec1))
            magnified[0].set_title("near fp32, magnified", loc="left")
            whole.set_title("all variants", loc="left")
        whole.set_yticks(range(len(shown)), shown["label"], fontsize=FONT_SIZE)
        whole.set_ylim(len(shown) - 0.4, -0.6)
        handles = [legend_entry(f"fp32 {float_prec1:.2f}", "#000000", "-")]
        handles += [legend_entry(f"{bits:g}-bit weights{means.get(bits, '')}", colors[bits], marker="o") for bits in widths]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def _limits(variants: pd.DataFrame, float_prec1: float) -> tuple[float, float]:
    """Of an axis that holds all intervals."""
    return padded(min(*variants["low"], float_prec1), max(*variants["high"], float_prec1), least=2.0)


def _draw(axes: Axes, variants: pd.DataFrame, colors: dict[int, str], float_prec1: float, limits: tuple[float, float]) -> None:
    """Points and intervals at the rows' numbers; the float network is a line across all of them."""
    shades = [colors[bits] for bits in variants["bits"]]
    axes.axvline(float_prec1, color="#000000", linewidth=1.5, zorder=1.9)
    series = list(variants["variant"])  # as the other figures call them
    tell(axes.hlines(variants.index, variants["low"], variants["high"], colors=shades, linewidth=1.2), series)
    if "draws_sd" in variants:
        sd = variants["draws_sd"].fillna(0.0)
        axes.hlines(variants.index, variants["prec1"] - sd, variants["prec1"] + sd, colors=shades, linewidth=5.0, alpha=0.45)
    numbers = zip(variants["label"], variants["prec1"], variants["low"], variants["high"], strict=True)
    texts = [f"{name}: {percent_text(prec1, low, high)}" for name, prec1, low, high in numbers]
    tell(axes.scatter(variants["prec1"], variants.index, c=shades, s=14, zorder=2.5), series, texts)
    axes.set_xlim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("Prec@1 (percent)")
    axes.tick_params(axis="y", length=0)
