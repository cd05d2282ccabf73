"""Prec@1 against the time that an image takes: one point for each exported network in each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from qexp.base.nouns import FLOAT_VARIANT
from qexp.reporting.style import MARKERS, RC, padded, percent_axis, spread_colors

BLACK = "#000000"
Point = tuple[str, str, float, float]  # network, runtime, ms an image, Prec@1 in percent


def prec1_by_cost(exports: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Prec@1 of what a runtime gave, against its median latency an image at the largest batch; None where nothing was timed.

    Colour tells the network, black the float one; the marker tells the runtime.

    Args:
        exports: of `qexp.reporting.exports.load_exports`.
    """
    found = points(exports)
    if not found:
        return None
    networks = [name for name in dict.fromkeys(point[0] for point in found) if name != FLOAT_VARIANT]
    runtimes = list(dict.fromkeys(point[1] for point in found))
    colors = dict(zip(networks, spread_colors(max(1, len(networks))), strict=False)) | {FLOAT_VARIANT: BLACK}
    markers = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(runtimes)}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.add_subplot()
        for network, runtime, cost, prec1 in found:
            axes.plot([cost], [prec1], color=colors[network], marker=markers[runtime], linestyle="none", markersize=6)
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds an image, median at the largest batch")
        values = [point[3] for point in found]
        percent_axis(axes, padded(min(values), max(values), least=2.0))
        shapes = [_handle("#7F7F7F", markers[name], name) for name in runtimes]
        tints = [_handle(colors[name], "o", name) for name in (FLOAT_VARIANT, *networks) if name in {each[0] for each in found}]
        axes.legend(handles=[*tints, *shapes], loc="upper left", bbox_to_anchor=(1.01, 1.0))
        sizes = ", ".join(dict.fromkeys(f"n = {each['n']} {each['split']} images" for each in exports if each["cost"]))
        cpus = "; ".join(dict.fromkeys(f"{each['cpu']}, threads: {each['threads']}" for each in exports if each["cost"]))
        axes.set_title(f"Prec@1 against time\n{sizes}; {cpus}", loc="left")
    return figure


def points(exports: Sequence[Mapping[str, Any]]) -> list[Point]:
    """What was timed and scored: equal points once."""
    found: dict[Point, None] = {}
    for each in exports:
        prec1 = {rung["name"]: rung["prec1"] for rung in each["rungs"]}
        largest = max((line["batch"] for line in each["cost"]), default=0)
        for line in each["cost"]:
            if line["batch"] != largest:
                continue
            is_float = line["network"] == FLOAT_VARIANT
            name = FLOAT_VARIANT if is_float else each["variant"]
            scored = prec1.get(FLOAT_VARIANT if is_float else line["runtime"])
            if scored is not None:
                found[(name, line["runtime"], line["median_ms"] / line["batch"], scored)] = None
    return list(found)


def _handle(color: str, marker: str, label: str) -> matplotlib.lines.Line2D:
    return matplotlib.lines.Line2D([], [], color=color, marker=marker, linestyle="none", markersize=6, label=label)
