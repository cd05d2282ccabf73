"""Prec@1 against stored size: what a byte buys, with the variants that none beats in both."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from qexp.base.text import MIB
from qexp.reporting.figures.accuracy import last_zoom
from qexp.reporting.figures.layout import Limits, lay_out, panels_of
from qexp.reporting.figures.marks import percent_text, points, tell
from qexp.reporting.figures.style import MARKERS, drawing, legend_entry, mean_words, padded, percent_axis, spread_colors, title
from qexp.reporting.frames.comparison import has_qat
from qexp.reporting.frames.repeats import over_draws
from qexp.reporting.frames.summary import is_control, is_float, summarize
from qexp.reporting.statistics.paired import wilson_ends
from qexp.tracking.record import FLOAT_BITS, FLOAT_VARIANT
from qexp.tracking.row_types import ExportRow

BLACK, FRONT = "#000000", "#7F7F7F"
PARETO = legend_entry("Pareto front", FRONT, "-", width=1.2)
Point = tuple[str, str, float, float, int]  # as in `COLUMNS`
COLUMNS = ["network", "runtime", "cost", "prec1", "n"]
COPIES = ("evaluated", "simulated")  # fidelity stages that stand for a network whatever runs it


def prec1_by_size(records: pd.DataFrame) -> Figure | None:
    """Prec@1 at the last epoch with its 95 % Wilson interval against the stored size; a line joins the Pareto front.

    The front is of the numbers as measured: a point whose interval reaches over it may belong to it. Controls, which are
    stored in float, are left out. None where all variants have one size.

    Args:
        records: of `load_records`.
    """
    table = over_draws(summarize(records))
    table = table[~is_control(table)]
    if table[~is_float(table)]["size_bytes"].nunique() < 2:
        return None
    widths = sorted(set(table["bits"][~is_float(table)]), reverse=True)
    colors = dict(zip(widths, spread_colors(len(widths)), strict=True))
    means = mean_words(table)
    markers = {width: MARKERS[number % len(MARKERS)] for number, width in enumerate(widths)}
    table = table.assign(panel="" if has_qat(table) else table["group"])
    panels = panels_of(table, "panel")

    def draw(axes: Axes, part: pd.DataFrame, limits: Limits | None) -> None:
        front = pareto(part)
        axes.plot(part.loc[front, "size_bytes"] / MIB, part.loc[front, "prec1"], color=FRONT, linewidth=1.2, zorder=1.5)
        shown = part if limits is None else part[part["prec1"] >= limits[0]]  # of an interval below only a part would be seen
        intervals, of_float = wilson_ends(shown), is_float(shown)
        looks = [
            (BLACK, "o") if alone else (colors[bits], markers[bits]) for bits, alone in zip(shown["bits"], of_float, strict=True)
        ]
        sizes, shades = shown["size_bytes"] / MIB, [color for color, _ in looks]
        # Drawn at once: a table may have hundreds.
        bars = axes.vlines(sizes, intervals["low"], intervals["high"], colors=shades, linewidth=1.0)
        tell(bars, list(shown["variant"]))
        alike: dict[tuple[str, str], list[tuple[float, float, tuple[str, str]]]] = {}
        for row, ends, look in zip(shown.itertuples(), intervals.itertuples(), looks, strict=True):
            size = row.size_bytes / MIB
            text = f"{row.variant}: {percent_text(row.prec1, ends.low, ends.high)}, {size:.3f} MiB"
            alike.setdefault(look, []).append((size, row.prec1, (row.variant, text)))
        for (color, marker), several in alike.items():
            x, prec1, told = zip(*several, strict=True)
            points(axes, x, prec1, color, marker, 5, told)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:.3g}"))
        axes.set_xlabel("MiB stored")
        ends = wilson_ends(part)
        percent_axis(axes, limits or padded(ends["low"].min(), ends["high"].max(), least=2.0))

    handles = [legend_entry("float", BLACK, marker="o", size=5)]
    handles += [
        legend_entry(f"{bits:g} bits{means.get(bits, '')}", colors[bits], marker=markers[bits], size=5) for bits in widths
    ]
    handles.append(PARETO)
    zooms = [_with_intervals(last_zoom(part), part) for _, part in panels]
    heading = title(table, "Prec@1 against stored size, last epoch, with 95 % intervals")
    return lay_out(panels, zooms, draw, handles, heading)


def _with_intervals(limits: Limits | None, part: pd.DataFrame) -> Limits | None:
    """Limits that hold the intervals of the points within them."""
    if limits is None:
        return None
    ends = wilson_ends(part[part["prec1"] >= limits[0]])
    return padded(ends["low"].min(), ends["high"].max(), least=1.0)


def pareto(table: pd.DataFrame, cost: str = "size_bytes") -> list[int]:
    """The index of the rows that no other beats in cost and Prec@1, by cost.

    Args:
        table: rows with `prec1` and `cost`.
        cost: name of the column that is to be low.
    """
    front, best = [], float("-inf")
    ordered = table.sort_values([cost, "prec1"], ascending=[True, False], kind="stable")
    for index, prec1 in ordered["prec1"].items():
        if prec1 > best:
            front.append(index)
            best = prec1
    return front


def prec1_by_cost(exports: Sequence[ExportRow]) -> Figure | None:
    """Prec@1 of what a runtime gave, against its median latency an image at the largest batch; None where nothing was timed.

    Each with its 95 % Wilson interval; a line joins the Pareto front. The colour stands for the network, black for the float one;
    the marker for the runtime.

    Args:
        exports: of `qexp.reporting.tables.exports.load_exports`.
    """
    timed = [export for export in exports if export["cost"]]
    cpus = "; ".join(dict.fromkeys(f"{export['cpu']}, threads: {export['threads']}" for export in timed))
    return _draw(
        latency_points(exports),
        "milliseconds",
        "an image, median at the largest batch",
        f"Prec@1 against time\n{_sizes(timed)}; {cpus}",
    )


def prec1_by_bops(exports: Sequence[ExportRow]) -> Figure | None:
    """Prec@1 against bit operations of an image, MACs times the widths of both factors; None where all cost the same.

    A network is scored as evaluated, whatever runs it. Intervals and front as in `prec1_by_cost`.

    Args:
        exports: of `qexp.reporting.tables.exports.load_exports`.
    """
    table = bops_points(exports)
    if table["cost"].nunique() < 2:
        return None
    scored = [export for export in exports if export["layers"]]
    return _draw(table, "billion bit operations", "an image", f"Prec@1 against bit operations\n{_sizes(scored)}")


def latency_points(exports: Sequence[ExportRow]) -> pd.DataFrame:
    """What was timed and scored, `COLUMNS`, `cost` in milliseconds an image: equal points once."""
    points: list[Point] = []
    for export in exports:
        stages = {stage["name"]: stage for stage in export["rungs"]}
        largest = max((timing["batch"] for timing in export["cost"]), default=0)
        for timing in export["cost"]:
            if timing["batch"] != largest:
                continue
            of_float = timing["network"] == FLOAT_VARIANT
            stage = stages.get(FLOAT_VARIANT if of_float else timing["runtime"])
            if stage is not None and stage["prec1"] is not None:
                name, cost = FLOAT_VARIANT if of_float else export["variant"], timing["median_ms"] / timing["batch"]
                points.append((name, timing["runtime"], cost, stage["prec1"], stage["n"]))
    return pd.DataFrame(list(dict.fromkeys(points)), columns=COLUMNS)


def bops_points(exports: Sequence[ExportRow]) -> pd.DataFrame:
    """What was scored and counted, `COLUMNS`, `cost` in billion bit operations an image: equal points once."""
    points: list[Point] = []
    for export in exports:
        stages = {stage["name"]: stage for stage in export["rungs"]}
        copy = next((stages[name] for name in COPIES if name in stages), None)
        macs, bops = (sum(layer[key] for layer in export["layers"]) for key in ("macs", "bops"))
        of_float = (FLOAT_VARIANT, stages.get(FLOAT_VARIANT), macs * FLOAT_BITS**2)
        for name, stage, cost in (of_float, (export["variant"], copy, bops)):
            if stage is not None and cost and stage["prec1"] is not None:
                points.append((name, "", cost / 1e9, stage["prec1"], stage["n"]))
    return pd.DataFrame(list(dict.fromkeys(points)), columns=COLUMNS)


def _draw(table: pd.DataFrame, unit: str, of_what: str, heading: str) -> Figure | None:
    """One panel: points with intervals, the front, and a legend of networks and runtimes beside it."""
    if table.empty:
        return None
    networks = [name for name in table["network"].unique() if name != FLOAT_VARIANT]
    runtimes = list(table["runtime"].unique())
    colors = dict(zip(networks, spread_colors(max(1, len(networks))), strict=False)) | {FLOAT_VARIANT: BLACK}
    markers = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(runtimes)}
    table = table.join(wilson_ends(table))
    with drawing(5.6, 4.0 + 0.17 * (len(networks) + len(runtimes)), heading, 10) as figure:
        axes = figure.subplots()
        front = table.loc[pareto(table, "cost")]
        axes.plot(front["cost"], front["prec1"], color=FRONT, linewidth=1.2, zorder=1.5)
        for row in table.itertuples():
            color, marker = colors[row.network], markers[row.runtime]
            tell(axes.vlines(row.cost, row.low, row.high, color=color, linewidth=1.0), row.network)
            where = f" in {row.runtime}" if row.runtime else ""
            text = f"{row.network}{where}: {percent_text(row.prec1, row.low, row.high)}, {row.cost:.4g} {unit}"
            points(axes, [row.cost], [row.prec1], color, marker, 6, [(row.network, text)])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"{unit} {of_what}")
        percent_axis(axes, padded(table["low"].min(), table["high"].max(), least=2.0))
        known = set(table["network"])
        handles = [legend_entry(name, colors[name], marker="o") for name in (FLOAT_VARIANT, *networks) if name in known]
        handles += [legend_entry(name, FRONT, marker=markers[name]) for name in runtimes if name]
        figure.legend(handles=[*handles, PARETO], loc="outside lower left")
    return figure


def _sizes(exports: Sequence[ExportRow]) -> str:
    sizes = dict.fromkeys(f"n = {export['n']} {export['split']} images" for export in exports)
    return ", ".join(sizes) + ", with 95 % intervals"
