"""Maps of layers: what each costs the network, and how much of it the quantizers keep; a colour and a number per cell."""

from __future__ import annotations

from math import isfinite, log10

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qexp.reporting.figures.style import drawing

DECADES = 5  # that the colours of a KL span at most
MAX_DB = 60.0  # above it a copy is as good as exact, and shades would be lost on it
NO_VALUE = "#d9d9d9"


def sqnr_map(layers: pd.DataFrame) -> Figure | None:
    """SQNR of each weight in each way to quantize it, dB; None where nothing was measured.

    Columns are variants that were profiled, and of an analysis of single layers its widths; grey is left float.

    Args:
        layers: of `qexp.reporting.frames.layers.load_layers`.
    """
    known = layers[layers["role"].ne("activation") & layers["sqnr_db"].notna()]
    if known.empty:
        return None
    values = _pivot(known, "sqnr_db")
    finite = values.to_numpy(dtype=float)[np.isfinite(values.to_numpy(dtype=float))]
    low, high = (
        (min(finite.min(), MAX_DB - 1), min(max(finite.max(), finite.min() + 1), MAX_DB)) if len(finite) else (0.0, MAX_DB)
    )
    texts = values.map(lambda value: "" if np.isnan(value) else "exact" if np.isinf(value) else f"{value:.1f}")
    heading = "Signal to quantization noise of each weight\n10 log10(sum w^2 / sum (w - w^)^2)"
    return heat_map(values.clip(upper=high), texts, (low, high), "SQNR, dB", heading)


def sensitivity_map(layers: pd.DataFrame) -> Figure | None:
    """KL of the network with one layer quantized, all others float, of every analysis of the experiment; None without one.

    Args:
        layers: of `qexp.reporting.frames.layers.load_layers`.
    """
    known = layers[layers["task"].eq("sensitivity")]
    if known.empty:
        return None
    sizes = ", ".join(f"n = {n:.0f}" for n in known["n"].dropna().unique())
    return kl_map(_pivot(known, "kl"), f"What each layer costs, alone\nall others float, {sizes} images")


def kl_map(values: pd.DataFrame, heading: str, x_label: str = "") -> Figure:
    """Layers by columns, KL in nats on a logarithmic scale of colours, the numbers written in.

    Args:
        values: [layers, columns].
        heading: above the figure.
        x_label: below the columns.
    """
    numbers = values.to_numpy(dtype=float)
    known = numbers[np.isfinite(numbers) & (numbers > 0)]
    top = known.max() if len(known) else 1.0
    low = max(known.min(initial=top), top * 10.0**-DECADES)
    low = low if low < top else top / 10
    clipped = np.clip(np.where(np.isposinf(numbers), top, numbers), low, top)
    colored = pd.DataFrame(np.log10(clipped), values.index, values.columns)
    texts = values.map(lambda value: "" if np.isnan(value) else f"{value:.2g}")
    return heat_map(colored, texts, (log10(low), log10(top)), "log10 of KL(float || quantized), nats", heading, x_label=x_label)


def _pivot(layers: pd.DataFrame, column: str) -> pd.DataFrame:
    """Layers in the order of the network by columns in theirs."""
    names, columns = (list(dict.fromkeys(layers[key])) for key in ("layer", "column"))
    values = layers.drop_duplicates(["layer", "column"], keep="last").pivot(index="layer", columns="column", values=column)
    return values.reindex(index=names, columns=columns)


def heat_map(
    values: pd.DataFrame, texts: pd.DataFrame, limits: tuple[float, float], label: str, heading: str, *, x_label: str = "",
    y_label: str | None = None,
) -> Figure:  # fmt: skip
    """Cells in colours between `limits`, light on dark and dark on light; a value that is none is grey.

    Args:
        values: [rows, columns], that colours stand for.
        texts: [rows, columns], written in.
        limits: of the colours.
        label: of the scale of colours.
        heading: above the figure.
        x_label: below the columns.
        y_label: beside the rows.
    """
    count, columns = values.shape
    long = max(len(str(name)) for name in values.columns) > 6
    middle = sum(limits) / 2
    with drawing(3.4 + 0.62 * columns, 1.4 + 0.22 * count + (1.2 if long else 0.0), heading) as figure:
        axes = figure.subplots()
        scale = matplotlib.colormaps["cividis"].with_extremes(bad=NO_VALUE)
        image = axes.imshow(values.to_numpy(dtype=float), cmap=scale, aspect="auto", vmin=limits[0], vmax=limits[1])
        axes.set_xticks(range(columns), [str(name) for name in values.columns])
        if long:
            axes.tick_params(axis="x", labelsize=7, rotation=35)
            for tick in axes.get_xticklabels():
                tick.set_horizontalalignment("right")
        axes.set_yticks(range(count), list(values.index), fontsize=7)
        axes.tick_params(length=0)
        axes.set_xlabel(x_label)
        if y_label is not None:
            axes.set_ylabel(y_label)
        axes.grid(visible=False)
        for (row, column), text in np.ndenumerate(texts.to_numpy()):
            value = values.iat[row, column]
            color = "white" if isfinite(value) and value < middle else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=color)
        figure.colorbar(image, ax=axes, label=label, pad=0.02)
    return figure
