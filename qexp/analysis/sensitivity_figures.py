"""Layers by width as a map of their cost, and each cheap measure against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qexp.analysis.results import Allocation, Sensitivity
from qexp.config.analyze import PROXIES
from qexp.reporting.figures.layers import kl_map
from qexp.reporting.figures.style import MARKERS, PALETTE, drawing

NAMES = {
    "sqnr": "weight noise / signal", "mse": "weight MSE", "weighted_mse": "weighted MSE", "fisher": "Fisher",
    "hessian": "Hessian trace",
}  # fmt: skip


def draw(sensitivity: Sensitivity) -> Iterator[tuple[str, Figure]]:
    """The figures with the stems of their files."""
    yield "map", heat_map(sensitivity)
    for bits in sorted({loss.bits for loss in sensitivity.layers}):
        yield f"proxies_{bits}_bits", proxies_against_kl(sensitivity, bits)


def heat_map(sensitivity: Sensitivity) -> Figure:
    """Measured KL of every layer at every width."""
    layers = list(dict.fromkeys(loss.layer for loss in sensitivity.layers))
    widths = sorted({loss.bits for loss in sensitivity.layers})
    values = pd.DataFrame(float("nan"), index=layers, columns=widths)
    for loss in sensitivity.layers:
        values.loc[loss.layer, loss.bits] = loss.kl
    heading = f"{sensitivity.label}: what each layer costs\n{sensitivity.subject}, n = {sensitivity.images}"
    return kl_map(values, heading, "bits of this layer, all others float")


def proxies_against_kl(sensitivity: Sensitivity, bits: int) -> Figure:
    """A panel for each cheap measure: layers by it and by their measured KL, both on logarithmic scales."""
    layers = [loss for loss in sensitivity.layers if loss.bits == bits]
    rho = {trust.measure: trust.spearman for trust in sensitivity.trust if trust.bits == bits and trust.truth == "kl"}
    heading = f"{sensitivity.subject}: {bits} bits, one layer at a time, {sensitivity.images}"
    with drawing(2.5 * len(PROXIES), 2.9, heading) as figure:
        for axes, measure in zip(figure.subplots(1, len(PROXIES), sharey=True), PROXIES, strict=True):
            known = [(loss.score(measure), loss.kl) for loss in layers]
            points = [(x, y) for x, y in known if x is not None and isfinite(y) and x > 0 and y > 0]
            if points:
                axes.scatter(*zip(*points, strict=True), s=18, color=PALETTE[0], alpha=0.8, linewidth=0)
                axes.set_xscale("log")
                axes.set_yscale("log")
            hidden = len(known) - len(points)
            axes.set_xlabel(NAMES[measure] + (f"\n({hidden} at or below 0 not shown)" if hidden else ""))
            axes.set_title("rho " + ("-" if rho.get(measure) is None else f"{rho[measure]:.2f}"))
        figure.axes[0].set_ylabel("measured KL, nats")
    return figure


def draw_allocation(allocation: Allocation) -> Iterator[tuple[str, Figure]]:
    """The figures with the stems of their files."""
    yield "bits", bits_by_layer(allocation)
    if sum(bool(choice.predicted) for choice in allocation.choices) > 1:
        yield "additivity", predicted_and_measured(allocation)


def bits_by_layer(allocation: Allocation) -> Figure:
    """A bar for each layer's width, one panel each for exact, greedy and one width for all."""
    chosen = [choice for choice in allocation.choices if choice.measure in ("", allocation.choices[0].measure)]
    names = list(allocation.choices[0].bits)
    top = max(max(choice.bits.values()) for choice in chosen)
    heading = f"{allocation.subject}: {allocation.budget}"
    with drawing(1.6 + 2.2 * len(chosen), 1.1 + 0.2 * len(names), heading) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(chosen), sharey=True))
        for axes, choice, color in zip(panels, chosen, PALETTE, strict=False):
            axes.barh(range(len(names)), list(choice.bits.values()), color=color, height=0.7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.set_xlim(0, top + 0.5)
            axes.set_xlabel("bits")
            axes.set_title(choice.method)
            axes.grid(axis="y", visible=False)
        panels[0].invert_yaxis()
    return figure


def predicted_and_measured(allocation: Allocation) -> Figure:
    """Every choice by the sum of its layers' losses and by the loss of the network."""
    with drawing(4.6, 3.6) as figure:
        axes = figure.subplots()
        known = [(choice, choice.predicted) for choice in allocation.choices if choice.predicted and choice.kl > 0]
        for number, (choice, predicted) in enumerate(known):
            color, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
            label = f"{choice.method} {choice.measure}".strip()
            axes.plot(predicted, choice.kl, marker=marker, color=color, linestyle="", label=label)
        losses = [loss for choice, predicted in known for loss in (predicted, choice.kl)]
        axes.plot([min(losses), max(losses)], [min(losses), max(losses)], color="#7F7F7F", linewidth=0.8, label="equal")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("sum of single layers' KL, nats")
        axes.set_ylabel("KL of the network, nats")
        axes.legend(fontsize=7)
        axes.set_title(f"{allocation.subject}: do losses add up?\n{allocation.budget}", loc="left", fontsize=9)
    return figure
