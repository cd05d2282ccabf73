"""Histograms of quantized tensors with their grids drawn in, one figure each and all on one sheet; SQNR; class scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qexp.analysis.results import ClassScore, Profile, TensorProfile
from qexp.reporting.figures.style import PALETTE, RC

BLUE, ORANGE, GREEN = PALETTE[:3]
NUM_LINES = 32  # levels that are drawn as lines over the whole height; more are ticks at the foot
SHEET_COLUMNS, SHEET_ROWS = 5, 8


def draw(found: Profile) -> Iterator[tuple[str, Figure]]:
    """The figures of the whole network with the stems of their files: sheets of histograms, SQNR, class scores."""
    for stem, group in (("weights", found.weights), ("activations", found.activations)):
        pages = [group[start : start + SHEET_COLUMNS * SHEET_ROWS] for start in range(0, len(group), SHEET_COLUMNS * SHEET_ROWS)]
        for number, page in enumerate(pages, start=1):
            part = f" ({number} of {len(pages)})" if len(pages) > 1 else ""
            name = f"sheet_{stem}" + (f"_{number}" if len(pages) > 1 else "")
            yield name, contact_sheet(page, f"{found.label}: {stem}{part}\n{found.subject}")
    if any(each.sqnr_db is not None for each in found.tensors):
        yield "sqnr", sqnr_bars(found)
    if found.scores:
        yield "scores", score_bars(found.scores, f"{found.label}: class scores of {found.image.rpartition('/')[2]}")


def draw_each(found: Profile) -> Iterator[tuple[str, Figure]]:
    """One histogram per tensor, with the stem of its file, numbered in the order of the table."""
    for number, each in enumerate(found.tensors, start=1):
        safe = "".join(char if char.isalnum() or char in "-_" else "_" for char in each.name)
        with matplotlib.rc_context(RC):
            figure = Figure(figsize=(6.4, 3.6))
            histogram(figure.subplots(), each)
        yield f"{number:03d}_{'activation_' if each.is_activation else ''}{safe}", figure


def histogram(axes: Axes, each: TensorProfile, small: bool = False) -> None:
    """The values of a tensor on a logarithmic scale of counts, the levels of its grid, and what lies beyond."""
    values = each.histogram
    edges = np.linspace(values.minimum, values.maximum, len(values.counts) + 1)
    shares = 100 * np.array(values.counts) / max(sum(values.counts), 1)
    axes.stairs(shares, edges, fill=True, color=BLUE, alpha=0.75, linewidth=0)
    axes.set_yscale("log")
    least = shares[shares > 0].min() if (shares > 0).any() else 0.1
    axes.set_ylim(least / 2, shares.max() * 2)
    low, high = min(each.minimum, edges[0]), max(each.maximum, edges[-1])
    if each.grid_min is not None and each.grid_max is not None:
        low, high = _with_grid(axes, each, low, high)
    margin = 0.03 * (high - low or 1.0)
    axes.set_xlim(low - margin, high + margin)
    axes.grid(axis="x", visible=False)
    sqnr = "exact" if each.sqnr_db is None else f"{each.sqnr_db:.1f} dB"
    clipped = f", {100 * each.saturation:.2g} % clipped" if each.saturation else ""
    if small:
        axes.set_title(f"{_shortened(each.name)}\n{each.bits} bits, {sqnr}{clipped}", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.locator_params(axis="x", nbins=4)
        return
    scheme = each.scheme if each.granularity == "per_tensor" else f"{each.scheme} {each.granularity}"
    axes.set_title(f"{each.name}\n{each.bits} bits, {scheme}, {each.ranges or each.mode}: SQNR {sqnr}{clipped}")
    axes.set_xlabel("value")
    axes.set_ylabel("share of values per bin (percent)")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=8)


def _with_grid(axes: Axes, each: TensorProfile, low: float, high: float) -> tuple[float, float]:
    """Draw levels and ends of a grid, and shade what is clipped; returns the limits of the axis that show them.

    A grid much wider than the values is cut off, so that the values can still be seen.
    """
    levels = each.histogram.levels
    several = " (widest of its groups)" if each.num_groups > 1 else ""
    ends = [each.grid_min, each.grid_max]
    if each.grid_min > low:
        axes.axvspan(low - (high - low), each.grid_min, color=ORANGE, alpha=0.08, linewidth=0)
    if each.grid_max < high:
        axes.axvspan(each.grid_max, high + (high - low), color=ORANGE, alpha=0.08, linewidth=0)
    if levels:
        label = f"{len(levels)} levels{several}"
        if len(levels) <= NUM_LINES:
            axes.vlines(levels, 0, 1, transform=axes.get_xaxis_transform(), color=ORANGE, linewidth=0.7, alpha=0.8, label=label)
        else:
            axes.vlines(levels, 0, 0.06, transform=axes.get_xaxis_transform(), color=ORANGE, linewidth=0.5, label=label)
    axes.vlines(
        ends,
        0,
        1,
        transform=axes.get_xaxis_transform(),
        color="black",
        linewidth=1.0,
        linestyle=(0, (4, 2)),
        label="ends of the grid",
    )
    width = high - low
    return max(min(low, ends[0]), low - 0.6 * width), min(max(high, ends[1]), high + 0.6 * width)


def contact_sheet(tensors: Sequence[TensorProfile], title: str) -> Figure:
    """Small histograms of many tensors, in the order of the network."""
    columns = min(SHEET_COLUMNS, len(tensors))
    rows = ceil(len(tensors) / columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(2.5 * columns + 0.4, 1.75 * rows + 0.7), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, each in zip(grid, tensors, strict=False):
            histogram(axes, each, small=True)
        for axes in grid[len(tensors) :]:
            axes.set_axis_off()
        figure.suptitle(title, fontsize=10)
        figure.supylabel("share of values per bin (percent)", fontsize=8)
    return figure


def sqnr_bars(found: Profile) -> Figure:
    """SQNR of every tensor, in the order of the network; weights and activations side by side."""
    groups = [(name, group) for name, group in (("weights", found.weights), ("activations", found.activations)) if group]
    longest = max(len(group) for _, group in groups)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(4.8 * len(groups), 0.17 * longest + 1.3), layout="constrained")
        for axes, (name, group) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
            known = [each.sqnr_db if each.sqnr_db is not None else 0.0 for each in group]
            places = range(len(group))
            axes.barh(places, known, color=BLUE if name == "weights" else GREEN, height=0.7)
            for place, each in enumerate(group):
                if each.sqnr_db is None:
                    axes.text(0, place, " exact", va="center", fontsize=6)
            axes.set_yticks(places, [_shortened(each.name, 34) for each in group], fontsize=6.5)
            axes.set_ylim(len(group) - 0.4, -0.6)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel("SQNR (dB)")
            axes.set_title(name)
        figure.suptitle(f"{found.label}: signal to quantization noise\n{found.subject}", fontsize=10)
    return figure


def score_bars(scores: Sequence[ClassScore], title: str) -> Figure:
    """Softmax scores before and after quantization."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.4, 0.42 * len(scores) + 1.5), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(scores))
        for shift, name, color, values in (
            (-0.2, "float", BLUE, [score.before for score in scores]),
            (0.2, "quantized", ORANGE, [score.after for score in scores]),
        ):
            bars = axes.barh(places + shift, values, height=0.38, color=color, label=name)
            axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=2, fontsize=7)
        axes.set_yticks(places, [score.name for score in scores])
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.set_xlim(0, 1.1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("score (softmax)")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _shortened(name: str, width: int = 26) -> str:
    """A name that fits, its end kept."""
    return name if len(name) <= width else f"...{name[3 - width :]}"
