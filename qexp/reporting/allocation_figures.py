"""Which layer got how many bits, and whether losses that were measured alone add up."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from qexp.base.sensitivity_nouns import Allocation
from qexp.reporting.style import MARKERS, PALETTE, RC


def draw(found: Allocation) -> Iterator[tuple[str, Figure]]:
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
