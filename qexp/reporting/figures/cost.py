"""Prec@1 against stored size: what a byte buys, with the variants that none beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from qexp.reporting.figures.accuracy import last_zoom
from qexp.reporting.figures.layout import Limits, lay_out, panels_of
from qexp.reporting.figures.style import MARKERS, RC, padded, percent_axis, spread_colors, title
from qexp.reporting.frames.comparison import has_qat
from qexp.reporting.frames.summary import is_control, is_float, summarize
from qexp.reporting.statistics.paired import wilson_of
from qexp.tracking.record import FLOAT_BITS, FLOAT_VARIANT

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


COLUMNS = ["network", "runtime", "cost", "prec1", "n"]

COPIES = ("evaluated", "simulated")  # rungs that stand for a network whatever runs it


def prec1_by_cost(exports: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Prec@1 of what a runtime gave, against its median latency an image at the largest batch; None where nothing was timed.

    Each with its 95 % Wilson interval; a line joins the Pareto front. Colour tells the network, black the float one; the marker
    tells the runtime.

    Args:
        exports: of `qexp.reporting.tables.exports.load_exports`.
    """
    timed = [each for each in exports if each["cost"]]
    cpus = "; ".join(dict.fromkeys(f"{each['cpu']}, threads: {each['threads']}" for each in timed))
    label = "milliseconds an image, median at the largest batch"
    return _draw(points(exports), label, f"Prec@1 against time\n{_sizes(timed)}; {cpus}")


def prec1_by_bops(exports: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Prec@1 against bit operations of an image, MACs times the widths of both factors; None where all cost the same.

    A network is scored as evaluated, whatever runs it. Intervals and front as in `prec1_by_cost`.

    Args:
        exports: of `qexp.reporting.tables.exports.load_exports`.
    """
    found = work(exports)
    if found["cost"].nunique() < 2:
        return None
    scored = [each for each in exports if each["layers"]]
    return _draw(found, "billion bit operations an image", f"Prec@1 against bit operations\n{_sizes(scored)}")


def points(exports: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What was timed and scored, `COLUMNS`, `cost` in milliseconds an image: equal points once."""
    found: dict[tuple, None] = {}
    for each in exports:
        rungs = {rung["name"]: rung for rung in each["rungs"]}
        largest = max((line["batch"] for line in each["cost"]), default=0)
        for line in each["cost"]:
            if line["batch"] != largest:
                continue
            is_float = line["network"] == FLOAT_VARIANT
            rung = rungs.get(FLOAT_VARIANT if is_float else line["runtime"])
            if rung is not None and rung["prec1"] is not None:
                name = FLOAT_VARIANT if is_float else each["variant"]
                found[name, line["runtime"], line["median_ms"] / line["batch"], rung["prec1"], rung["n"]] = None
    return pd.DataFrame(list(found), columns=COLUMNS)


def work(exports: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What was scored and counted, `COLUMNS`, `cost` in billion bit operations an image: equal points once."""
    found: dict[tuple, None] = {}
    for each in exports:
        rungs = {rung["name"]: rung for rung in each["rungs"]}
        copy = next((rungs[name] for name in COPIES if name in rungs), None)
        macs, bops = (sum(layer[key] for layer in each["layers"]) for key in ("macs", "bops"))
        for name, rung, cost in ((FLOAT_VARIANT, rungs.get(FLOAT_VARIANT), macs * FLOAT_BITS**2), (each["variant"], copy, bops)):
            if rung is not None and cost and rung["prec1"] is not None:
                found[name, "", cost / 1e9, rung["prec1"], rung["n"]] = None
    return pd.DataFrame(list(found), columns=COLUMNS)


def _draw(found: pd.DataFrame, label: str, heading: str) -> Figure | None:
    """One panel: points with intervals, the front, and a legend of networks and runtimes beside it."""
    if found.empty:
        return None
    networks = [name for name in found["network"].unique() if name != FLOAT_VARIANT]
    runtimes = list(found["runtime"].unique())
    colors = dict(zip(networks, spread_colors(max(1, len(networks))), strict=False)) | {FLOAT_VARIANT: BLACK}
    markers = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(runtimes)}
    ends = [wilson_of(prec1, n) for prec1, n in zip(found["prec1"], found["n"], strict=True)]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.6, 4.0 + 0.17 * (len(networks) + len(runtimes))), layout="constrained")
        axes = figure.subplots()
        front = found.loc[pareto(found, "cost")]
        axes.plot(front["cost"], front["prec1"], color=FRONT, linewidth=1.2, zorder=1.5)
        for row, interval in zip(found.itertuples(), ends, strict=True):
            axes.vlines(row.cost, interval.low, interval.high, color=colors[row.network], linewidth=1.0)
            axes.plot(
                [row.cost], [row.prec1], color=colors[row.network], marker=markers[row.runtime], linestyle="none", markersize=6
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label)
        percent_axis(axes, padded(min(each.low for each in ends), max(each.high for each in ends), least=2.0))
        known = set(found["network"])
        handles = [_handle(colors[name], "o", name) for name in (FLOAT_VARIANT, *networks) if name in known]
        handles += [_handle("#7F7F7F", markers[name], name) for name in runtimes if name]
        handles.append(matplotlib.lines.Line2D([], [], color=FRONT, linewidth=1.2, label="Pareto front"))
        figure.legend(handles=handles, loc="outside lower left")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10)
    return figure


def _sizes(exports: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(f"n = {each['n']} {each['split']} images" for each in exports)) + ", with 95 % intervals"


def _handle(color: str, marker: str, label: str) -> matplotlib.lines.Line2D:
    return matplotlib.lines.Line2D([], [], color=color, marker=marker, linestyle="none", markersize=6, label=label)
