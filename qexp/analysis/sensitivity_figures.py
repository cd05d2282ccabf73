"""Layers by width as a map of their cost, and each cheap measure against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qexp.analysis.results import Allocation, Sensitivity
from qexp.config.analyze import PROXIES
from qexp.reporting.figures.layers import kl_map
from qexp.reporting.figures.style import MARKERS, PALETTE, RC

NAMES = {
    "sqnr": "weight noise / signal", "mse": "weight MSE", "weighted_mse": "weighted MSE", "fisher": "Fisher",
    "hessian": "Hessian trace",
}  # fmt: skip


def draw(found: Sensitivity) -> Iterator[tuple[str, Figure]]:
    """The figures with the stems of their files."""
    yield "map", heat_map(found)
    for bits in sorted({each.bits for each in found.layers}):
        yield f"proxies_{bits}_bits", proxies_against_kl(found, bits)


def heat_map(found: Sensitivity) -> Figure:
    """Measured KL of every layer at every width."""
    layers = list(dict.fromkeys(each.layer for each in found.layers))
    widths = sorted({each.bits for each in found.layers})
    values = pd.DataFrame(float("nan"), index=layers, columns=widths)
    for each in found.layers:
        values.loc[each.layer, each.bits] = each.kl
    heading = f"{found.label}: what each layer costs\n{found.subject}, n = {found.images}"
    return kl_map(values, heading, "bits of this layer, all others float")


def proxies_against_kl(found: Sensitivity, bits: int) -> Figure:
    """A panel for each cheap measure: layers by it and by their measured KL, both on logarithmic scales."""
    layers = [each for each in found.layers if each.bits == bits]
    rho = {each.measure: each.spearman for each in found.trust if each.bits == bits and each.truth == "kl"}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(2.5 * len(PROXIES), 2.9), layout="constrained")
        for axes, measure in zip(figure.subplots(1, len(PROXIES), sharey=True), PROXIES, strict=True):
            known = [(each.score(measure), each.kl) for each in layers]
            points = [(x, y) for x, y in known if x is not None and isfinite(y) and x > 0 and y > 0]
            if points:
                axes.scatter(*zip(*points, strict=True), s=18, color=PALETTE[0], alpha=0.8, linewidth=0)
                axes.set_xscale("log")
                axes.set_yscale("log")
            hidden = len(known) - len(points)
            axes.set_xlabel(NAMES[measure] + (f"\n({hidden} at or below 0 not shown)" if hidden else ""))
            axes.set_title("rho " + ("-" if rho.get(measure) is None else f"{rho[measure]:.2f}"))
        figure.axes[0].set_ylabel("measured KL, nats")
        figure.suptitle(f"{found.subject}: {bits} bits, one layer at a time, {found.images}", x=0.01, ha="left", fontsize=9)
    return figure


def draw_allocation(found: Allocation) -> Iterator[tuple[str, Figure]]:
    """The figures with the stems of their files."""
    yield "bits", bits_by_layer(found)
    if sum(bool(each.predicted) for each in found.found) > 1:
        yield "additivity", predicted_and_measured(found)


def bits_by_layer(found: Allocation) -> Figure:
    """A bar for each layer's width, one panel each for exact, greedy and one width for all."""
    shown = [each for each in found.found if each.measure in ("", found.found[0].measure)]
    names = list(found.found[0].bits)
    top = max(max(each.bits.values()) for each in shown)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(1.6 + 2.2 * len(shown), 1.1 + 0.2 * len(names)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
        for axes, each, color in zip(panels, shown, PALETTE, strict=False):
            axes.barh(range(len(names)), list(each.bits.values()), color=color, height=0.7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.set_xlim(0, top + 0.5)
            axes.set_xlabel("bits")
            axes.set_title(each.method)
            axes.grid(axis="y", visible=False)
        panels[0].invert_yaxis()
        figure.suptitle(f"{found.subject}: {found.budget}", x=0.01, ha="left", fontsize=9)
    return figure


def predicted_and_measured(found: Allocation) -> Figure:
    """Every choice by the sum of its layers' losses and by the loss of the network."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        axes = figure.subplots()
        known = [each for each in found.found if each.predicted and each.kl > 0]
        for number, each in enumerate(known):
            color, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
            label = f"{each.method} {each.measure}".strip()
            axes.plot(each.predicted, each.kl, marker=marker, color=color, linestyle="", label=label)
        ends = [value for each in known for value in (each.predicted, each.kl)]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#7F7F7F", linewidth=0.8, label="equal")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("sum of single layers' KL, nats")
        axes.set_ylabel("KL of the network, nats")
        axes.legend(fontsize=7)
        axes.set_title(f"{found.subject}: do losses add up?\n{found.budget}", loc="left", fontsize=9)
    return figure
