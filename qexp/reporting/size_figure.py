"""Prec@1 against stored size: what a byte buys, with the variants that none beats in both."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from qexp.reporting.comparison import has_qat
from qexp.reporting.figures import last_zoom
from qexp.reporting.layout import Limits, lay_out, panels_of
from qexp.reporting.paired import wilson_of
from qexp.reporting.style import MARKERS, padded, percent_axis, spread_colors, title
from qexp.reporting.summary import is_control, is_float, summarize

BLACK, FRONT = "#000000", "#7F7F7F"
MIB = 1024 * 1024


def prec1_by_size(records: pd.DataFrame) -> Figure | None:
    """Prec@1 at the last epoch with its 95 % Wilson interval against the stored size; a line joins the Pareto front.

    The front is of the numbers as measured: a point whose interval reaches over it may belong to it. Controls, which are
    stored in float, are left out. None where all variants have one size.

    Args:
        records: of `load_records`.
    """
    table = summarize(records)
    table = table[~is_control(table)]
    if table[~is_float(table)]["size_bytes"].nunique() < 2:
        return None
    widths = sorted(set(table["bits"][~is_float(table)]), reverse=True)
    colors = dict(zip(widths, spread_colors(len(widths)), strict=True))
    markers = {width: MARKERS[number % len(MARKERS)] for number, width in enumerate(widths)}
    table = table.assign(panel="" if has_qat(table) else table["group"])
    panels = panels_of(table, "panel")

    def draw(axes: Axes, part: pd.DataFrame, limits: Limits | None) -> None:
        front = pareto(part)
        axes.plot(part.loc[front, "size_bytes"] / MIB, part.loc[front, "prec1"], color=FRONT, linewidth=1.2, zorder=1.5)
        for plain, bits, size, prec1, n in zip(
            is_float(part), part["bits"], part["size_bytes"] / MIB, part["prec1"], part["n"], strict=True
        ):
            color, marker = (BLACK, "o") if plain else (colors[bits], markers[bits])
            interval = wilson_of(prec1, n)
            axes.vlines(size, interval.low, interval.high, color=color, linewidth=1.0)
            axes.plot([size], [prec1], color=color, marker=marker, markersize=5, linestyle="none")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:.3g}"))
        axes.set_xlabel("MiB stored")
        percent_axis(axes, limits or padded(part["prec1"].min(), part["prec1"].max(), least=2.0))

    handles = [matplotlib.lines.Line2D([], [], color=BLACK, marker="o", linestyle="none", markersize=5, label="float")]
    handles += [
        matplotlib.lines.Line2D(
            [], [], color=colors[bits], marker=markers[bits], linestyle="none", markersize=5, label=f"{bits} bits"
        )
        for bits in widths
    ]
    handles.append(matplotlib.lines.Line2D([], [], color=FRONT, linewidth=1.2, label="Pareto front"))
    zooms = [_with_intervals(last_zoom(part), part) for _, part in panels]
    heading = title(table, "Prec@1 against stored size, last epoch, with 95 % intervals")
    return lay_out(panels, zooms, draw, handles, heading)


def _with_intervals(limits: Limits | None, part: pd.DataFrame) -> Limits | None:
    """Limits that hold the intervals of the points within them."""
    if limits is None:
        return None
    near = part[part["prec1"] >= limits[0]]
    found = [wilson_of(prec1, n) for prec1, n in zip(near["prec1"], near["n"], strict=True)]
    return padded(min(each.low for each in found), max(each.high for each in found), least=1.0)


def pareto(table: pd.DataFrame, cost: str = "size_bytes") -> list[int]:
    """The index of the rows that no other beats in cost and Prec@1, by cost."""
    front, best = [], float("-inf")
    ordered = table.sort_values([cost, "prec1"], ascending=[True, False], kind="stable")
    for index, prec1 in ordered["prec1"].items():
        if prec1 > best:
            front.append(index)
            best = prec1
    return front
