"""Histograms of quantized tensors with their grids drawn in, one figure each and all on one sheet; SQNR; class scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qexp.analysis.profile_results import ClassScore, Profile, TensorProfile
from qexp.reporting.figures.style import PALETTE, RC, drawing

BLUE, ORANGE, GREEN = PALETTE[:3]
NUM_LINES = 32  # levels that are drawn as lines over the whole height; more are ticks at the foot
SHEET_COLUMNS, SHEET_ROWS = 5, 8


def draw(profile: Profile) -> Iterator[tuple[str, Figure]]:
    """The figures of the whole network with the stems of their files: sheets of histograms, SQNR, class scores."""
    for stem, group in (("weights", profile.weights), ("activations", profile.activations)):
        pages = [group[start : start + SHEET_COLUMNS * SHEET_ROWS] for start in range(0, len(group), SHEET_COLUMNS * SHEET_ROWS)]
        for number, page in enumerate(pages, start=1):
            part = f" ({number} of {len(pages)})" if len(pages) > 1 else ""
            name = f"sheet_{stem}" + (f"_{number}" if len(pages) > 1 else "")
            yield name, contact_sheet(page, f"{profile.label}: {stem}{part}\n{profile.subject}")
    if any(tensor.sqnr_db is not None for tensor in profile.tensors):
        yield "sqnr", sqnr_bars(profile)
    if profile.scores:
        yield "scores", score_bars(profile.scores, f"{profile.label}: class scores of {profile.image.rpartition('/')[2]}")


def draw_each(profile: Profile) -> Iterator[tuple[str, Figure]]:
    """One histogram per tensor, with the stem of its file, numbered in the order of the table."""
    for number, tensor in enumerate(profile.tensors, start=1):
        safe = "".join(char if char.isalnum() or char in "-_" else "_" for char in tensor.name)
        with matplotlib.rc_context(RC):
            figure = Figure(figsize=(6.4, 3.6))
            histogram(figure.subplots(), tensor)
        yield f"{number:03d}_{'activation_' if tensor.is_activation else ''}{safe}", figure


def histogram(axes: Axes, tensor: TensorProfile, small: bool = False) -> None:
    """The values of a tensor on a logarithmic scale of counts, the levels of its grid, and what lies beyond.

    Args:
        axes: to draw into.
        tensor: whose values.
        small: for a sheet of many: small type, no labels.
    """
    values = tensor.histogram
    edges = np.linspace(values.minimum, values.maximum, len(values.counts) + 1)
    shares = 100 * np.array(values.counts) / max(sum(values.counts), 1)
    axes.stairs(shares, edges, fill=True, color=BLUE, alpha=0.75, linewidth=0)
    axes.set_yscale("log")
    least = shares[shares > 0].min() if (shares > 0).any() else 0.1
    axes.set_ylim(least / 2, shares.max() * 2)
    low, high = min(tensor.minimum, edges[0]), max(tensor.maximum, edges[-1])
    if tensor.grid_min is not None and tensor.grid_max is not None:
        low, high = _with_grid(axes, tensor, (tensor.grid_min, tensor.grid_max), (low, high))
    margin = 0.03 * (high - low or 1.0)
    axes.set_xlim(low - margin, high + margin)
    axes.grid(axis="x", visible=False)
    sqnr = "exact" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f} dB"
    clipped = f", {100 * tensor.saturation:.2g} % clipped" if tensor.saturation else ""
    if small:
        axes.set_title(f"{_shortened(tensor.name)}\n{tensor.bits} bits, {sqnr}{clipped}", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.locator_params(axis="x", nbins=4)
        return
    scheme = tensor.scheme if tensor.granularity == "per_tensor" else f"{tensor.scheme} {tensor.granularity}"
    axes.set_title(f"{tensor.name}\n{tensor.bits} bits, {scheme}, {tensor.ranges or tensor.mode}: SQNR {sqnr}{clipped}")
    axes.set_xlabel("value")
    axes.set_ylabel("share of values per bin (percent)")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=8)


def _with_grid(axes: Axes, tensor: TensorProfile, ends: tuple[float, float], limits: tuple[float, float]) -> tuple[float, float]:
    """Draw levels and ends of a grid, and shade what is clipped; returns the limits of the axis that show them.

    A grid much wider than the values is cut off, so that the values can still be seen.
    """
    low, high = limits
    levels = tensor.histogram.levels
    several = " (widest of its groups)" if tensor.num_groups > 1 else ""
    if ends[0] > low:
        axes.axvspan(low - (high - low), ends[0], color=ORANGE, alpha=0.08, linewidth=0)
    if ends[1] < high:
        axes.axvspan(ends[1], high + (high - low), color=ORANGE, alpha=0.08, linewidth=0)
    if levels:
        label = f"{len(levels)} levels{several}"
        if len(levels) <= NUM_LINES:
            axes.vlines(levels, 0, 1, transform=axes.get_xaxis_transform(), color=ORANGE, linewidth=0.7, alpha=0.8, label=label)
        else:
            axes.vlines(levels, 0, 0.06, transform=axes.get_xaxis_transform(), color=ORANGE, linewidth=0.5, label=label)
    dashed = {"color": "black", "linewidth": 1.0, "linestyle": (0, (4, 2))}
    axes.vlines(ends, 0, 1, transform=axes.get_xaxis_transform(), label="ends of the grid", **dashed)
    width = high - low
    return max(min(low, ends[0]), low - 0.6 * width), min(max(high, ends[1]), high + 0.6 * width)


def contact_sheet(tensors: Sequence[TensorProfile], title: str) -> Figure:
    """Small histograms of many tensors, in the order of the network."""
    columns = min(SHEET_COLUMNS, len(tensors))
    rows = ceil(len(tensors) / columns)
    with drawing(2.5 * columns + 0.4, 1.75 * rows + 0.7) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, tensor in zip(grid, tensors, strict=False):
            histogram(axes, tensor, small=True)
        for axes in grid[len(tensors) :]:
            axes.set_axis_off()
        figure.suptitle(title, fontsize=10)
        figure.supylabel("share of values per bin (percent)", fontsize=8)
    return figure


def sqnr_bars(profile: Profile) -> Figure:
    """SQNR of every tensor, in the order of the network; weights and activations side by side."""
    groups = [(name, group) for name, group in (("weights", profile.weights), ("activations", profile.activations)) if group]
    longest = max(len(group) for _, group in groups)
    with drawing(4.8 * len(groups), 0.17 * longest + 1.3) as figure:
        for axes, (name, group) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
            known = [tensor.sqnr_db if tensor.sqnr_db is not None else 0.0 for tensor in group]
            positions = range(len(group))
            axes.barh(positions, known, color=BLUE if name == "weights" else GREEN, height=0.7)
            for position, tensor in enumerate(group):
                if tensor.sqnr_db is None:
                    axes.text(0, position, " exact", va="center", fontsize=6)
            axes.set_yticks(positions, [_shortened(tensor.name, 34) for tensor in group], fontsize=6.5)
            axes.set_ylim(len(group) - 0.4, -0.6)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel("SQNR (dB)")
            axes.set_title(name)
        figure.suptitle(f"{profile.label}: signal to quantization noise\n{profile.subject}", fontsize=10)
    return figure


def score_bars(scores: Sequence[ClassScore], title: str) -> Figure:
    """Softmax scores before and after quantization."""
    with drawing(6.4, 0.42 * len(scores) + 1.5) as figure:
        axes = figure.subplots()
        positions = np.arange(len(scores))
        for shift, name, color, values in (
            (-0.2, "float", BLUE, [score.before for score in scores]),
            (0.2, "quantized", ORANGE, [score.after for score in scores]),
        ):
            bars = axes.barh(positions + shift, values, height=0.38, color=color, label=name)
            axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=2, fontsize=7)
        axes.set_yticks(positions, [score.name for score in scores])
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
