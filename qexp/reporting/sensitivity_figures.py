"""Layers by width as a map of their cost, and each cheap measure against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite, log10

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from qexp.base.sensitivity_nouns import PROXIES, Sensitivity
from qexp.reporting.style import PALETTE, RC

NAMES = {
    "sqnr": "weight noise / signal", "mse": "weight MSE", "weighted_mse": "weighted MSE", "fisher": "Fisher",
    "hessian": "Hessian trace",
}  # fmt: skip
DECADES = 5  # that the map's colours span at most


def draw(found: Sensitivity) -> Iterator[tuple[str, Figure]]:
    """The figures with the stems of their files."""
    yield "map", heat_map(found)
    for bits in sorted({each.bits for each in found.layers}):
        yield f"proxies_{bits}_bits", proxies_against_kl(found, bits)


def heat_map(found: Sensitivity) -> Figure:
    """Measured KL of every layer at every width, on a logarithmic scale of colours, the numbers written in."""
    layers = list(dict.fromkeys(each.layer for each in found.layers))
    widths = sorted({each.bits for each in found.layers})
    values = np.full((len(layers), len(widths)), np.nan)
    for each in found.layers:
        values[layers.index(each.layer), widths.index(each.bits)] = each.kl
    known = values[np.isfinite(values) & (values > 0)]
    top = known.max() if len(known) else 1.0
    low = max(known.min(initial=top), top * 10.0**-DECADES)
    low = low if low < top else top / 10
    shown = np.log10(np.clip(np.nan_to_num(values, nan=top, posinf=top), low, top))
    middle = (log10(low) + log10(top)) / 2
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(2.6 + 0.75 * len(widths), 1.2 + 0.24 * len(layers)))
        axes = figure.subplots()
        image = axes.imshow(shown, cmap="cividis", aspect="auto", vmin=log10(low), vmax=log10(top))
        axes.set_xticks(range(len(widths)), [str(width) for width in widths])
        axes.set_yticks(range(len(layers)), layers, fontsize=7)
        axes.set_xlabel("bits of this layer, all others float")
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(values):
            dark = shown[row, column] < middle
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        figure.colorbar(image, ax=axes, label="log10 of KL(float || quantized), nats", pad=0.02)
        axes.set_title(f"{found.label}: what each layer costs\n{found.subject}, n = {found.images}", loc="left", fontsize=9)
    return figure


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
