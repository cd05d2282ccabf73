"""Layers by width as a map of their cost, and each cheap measure against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from qexp.base.sensitivity_nouns import PROXIES, Sensitivity
from qexp.reporting.heat_maps import kl_map
from qexp.reporting.style import PALETTE, RC

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
