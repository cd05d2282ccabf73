"""Prec@1 against epoch, one curve per variant, and Prec@1 against bits, one line per family.

Where some variants end at chance level and others beside the float network, a panel has a second, magnified axis: on a shared one
either the collapse or the fraction of a point that matters cannot be seen. Drawn on `Figure` objects, as pyplot keeps global
state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qexp.reporting.figures.curves import (
    MAX_BANDS,
    OWN,
    LineKey,
    band_limits,
    curve_looks,
    deviations,
    draw_band,
    draw_curve,
    epoch_curves,
    is_reference,
    is_start,
    last_points,
    line_keys,
)
from qexp.reporting.figures.layout import Limits, lay_out, panels_of
from qexp.reporting.figures.marks import percent_text, points, tell
from qexp.reporting.figures.style import (
    LINES,
    MARKERS,
    Look,
    legend_entry,
    looks,
    padded,
    percent_axis,
    spread_colors,
    title,
    zoom_limits,
)
from qexp.reporting.frames.comparison import has_qat
from qexp.reporting.frames.repeats import is_further_draw, over_draws, repeats, without_draws
from qexp.reporting.frames.summary import Family, summarize

BLACK = "#000000"
REFERENCE_LINES, START_LINE = ("-", (0, (5, 1.5)), (0, (2, 1))), (0, (6, 3))


def prec1_by_epoch(records: pd.DataFrame) -> Figure:
    """Prec@1 of every variant after every epoch; a panel per training, the float network thick and black.

    Args:
        records: of `load_records`.
    """
    frame = _merged(records)
    styles = (curve_looks if has_qat(frame) else looks)(frame[~is_reference(frame)])
    references = _reference_looks(frame)
    panels = panels_of(frame, "label")
    zooms = [_epoch_zoom(part) for _, part in panels]

    def draw(axes: Axes, part: pd.DataFrame, limits: Limits | None) -> None:
        curves, float_curves = _curves(part)
        bands = band_limits(part, curves, float_curves)
        for name, curve in curves.items():
            look = styles[name]
            draw_band(axes, bands, name, look.color)
            draw_curve(axes, name, curve, look, 1.5)
        for name, reference in float_curves.items():
            draw_band(axes, bands, name, BLACK)
            draw_curve(axes, name, reference, references[name], _width(references[name]))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))
        axes.margins(x=0.03)
        values = part["prec1"]
        percent_axis(axes, limits or padded(values.min(), values.max(), least=2.0))

    final = frame.sort_values("epoch", kind="stable").groupby("variant")["prec1"].last() if len(panels) == 1 else None
    longest = max(map(len, frame["variant"]))
    entries = [(name, look, _width(look)) for name, look in references.items()]
    entries += [(name, look, 1.5) for name, look in styles.items()]
    handles = [
        legend_entry(
            name if final is None else f"{name:<{longest}} {final[name]:6.2f}", look.color, look.line, look.marker, 3.8, width
        )
        for name, look, width in entries
    ]
    averaged = has_qat(frame) and frame["sd"].notna().any()
    heading = "Prec@1 after every epoch" if has_qat(frame) else "Prec@1 of the quantized copies after every epoch"
    heading += ", mean over seeds, band one sd" if averaged else ", with 95 % intervals" if len(styles) <= MAX_BANDS else ""
    return lay_out(panels, zooms, draw, handles, title(frame, heading), monospace=final is not None)


def prec1_by_bits(records: pd.DataFrame) -> Figure | None:
    """Prec@1 at the last epoch against weight bits; a line per mode and family, the float network as a line across.

    Repeated seeds or draws are one panel: means, with a bar of one standard deviation. None where fewer than two widths were
    tried.

    Args:
        records: of `load_records`.
    """
    table = summarize(records)
    table = over_draws(table) if (table.groupby("group")["seed"].nunique() > 1).any() else without_draws(table)
    if has_qat(table):
        table = last_points(table)
    variants = table[~is_reference(table)]
    widths = sorted(set(variants["bits"]))
    ticks = _ticks(widths)
    if len(ticks) < 2:
        return None
    lines = dict.fromkeys(line_keys(variants))
    families = list(dict.fromkeys(family for mode, family in lines if mode not in ("half", OWN)))
    slots = {key: key[1] if len(families) > 1 and key[0] not in ("half", OWN) else key for key in lines}
    numbers = {slot: number for number, slot in enumerate(dict.fromkeys(slots.values()))}
    colors = spread_colors(len(numbers))
    styles = {
        key: Look(colors[numbers[slot]], LINES.get(key[0], "-"), MARKERS[numbers[slot] % len(MARKERS)])
        for key, slot in slots.items()
    }
    behind = " after training" if any(mode == OWN for mode, _ in styles) else ""
    labels = {(mode, family): _line_label(mode, family, families) + behind * (mode != OWN) for mode, family in styles}
    references = _reference_looks(table)
    panels = panels_of(table, "group")
    zooms = [last_zoom(part) for _, part in panels]

    def draw(axes: Axes, part: pd.DataFrame, limits: Limits | None) -> None:
        for name, rows in part[is_reference(part)].groupby("variant", sort=False):
            prec1, width = rows["prec1"].mean(), min(_width(references[name]), 2.0)
            level = axes.axhline(prec1, color=BLACK, zorder=1.9, linestyle=references[name].line, linewidth=width)
            tell(level, str(name))
        quantized = part[~is_reference(part)]
        keys = line_keys(quantized)
        shifts = _shifts(keys, quantized["bits"], list(styles))
        for key, look in styles.items():
            places = np.interp(widths, ticks, range(len(ticks)))
            positions = {width: place + shifts.get((key, width), 0.0) for width, place in zip(widths, places, strict=True)}
            _bits_line(axes, quantized.loc[[line == key for line in keys]], look, positions, labels[key])
        axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axes.set_xlim(-0.35, len(ticks) - 0.65)
        axes.set_xlabel("weight bits" + (", mean" if "widths" in part else ""))
        ends = deviations(part) if has_qat(part) else part["prec1"]
        percent_axis(axes, limits or padded(ends.min(), ends.max(), least=2.0))

    handles = [legend_entry(name, BLACK, look.line, width=min(_width(look), 2.0)) for name, look in references.items()]
    handles += [legend_entry(labels[key], look.color, look.line, look.marker, 5) for key, look in styles.items()]
    heading = "Prec@1 against weight bits, last epoch" + _over_what(table)
    return lay_out(panels, zooms, draw, handles, title(table, heading))


def _ticks(widths: Sequence[float]) -> list[int]:
    """Widths that were tried, and on both sides of a mean those that it stands between, unless it is all but one of them."""
    near = [round(width) if abs(width - round(width)) < 0.05 else None for width in widths]
    ends = [(math.floor(width), math.ceil(width)) if one is None else (one,) for width, one in zip(widths, near, strict=True)]
    return sorted({tick for pair in ends for tick in pair})


def _shifts(keys: Sequence[LineKey], bits: pd.Series, order: Sequence[LineKey]) -> dict[tuple[LineKey, int], float]:
    """(line, width) -> how far its point stands beside the tick: those of a width are set a little apart, around it.

    As int and its control do at high widths, they would lie on each other.
    """
    shifts: dict[tuple[LineKey, int], float] = {}
    step = min(0.07, 0.4 / len(order))
    for width in set(bits):
        of_width = {key for key, other in zip(keys, bits, strict=True) if other == width}
        present = [key for key in order if key in of_width]
        shifts |= {(key, width): (number - (len(present) - 1) / 2) * step for number, key in enumerate(present)}
    return shifts


def _bits_line(axes: Axes, variants: pd.DataFrame, look: Look, positions: Mapping[int, float], name: str) -> None:
    """One family's line, means over seeds; points without a line where several of its variants have the same bits.

    Args:
        axes: to draw on.
        variants: rows of the family.
        look: of the line.
        positions: width -> abscissa.
        name: of the line.
    """
    means = variants.groupby(["bits", "variant"])["prec1"].agg(["mean", "std"])
    bits = means.index.get_level_values("bits")
    drawn = axes.errorbar(
        [positions[width] for width in bits],
        means["mean"],
        yerr=means["std"].fillna(0.0) if means["std"].notna().any() else None,
        color=look.color,
        linestyle=look.line if bits.is_unique else "none",
        linewidth=1.5,
        capsize=3,
    )
    tell(drawn.lines[0], name)
    texts = [f"{variant}: {percent_text(prec1)}" for (_, variant), prec1 in means["mean"].items()]
    texts = [text if np.isnan(sd) else f"{text}, sd {sd:.2f}" for text, sd in zip(texts, means["std"], strict=True)]
    told = [(name, text) for text in texts]
    points(axes, [positions[width] for width in bits], list(means["mean"]), look.color, look.marker, 5, told)


def _merged(records: pd.DataFrame) -> pd.DataFrame:
    """The records of the variants that the table lists: of equal ones, the first."""
    table = summarize(records)
    table = table[~is_further_draw(table)]
    kept = set(zip(table["training"], table["variant_key"], table["split"], table["n"], strict=True))
    rows = zip(records["training"], records["variant_key"], records["split"], records["n"], strict=True)
    order = {name: number for number, name in enumerate(dict.fromkeys(table["variant"]))}
    merged = records[[row in kept for row in rows]]
    if has_qat(table):
        return epoch_curves(merged, table)
    return merged.sort_values("variant", key=lambda names: names.map(order), kind="stable")


def _curves(part: pd.DataFrame) -> tuple[dict[str, pd.Series], dict[str, pd.Series]]:
    """Prec@1 by epoch of each variant, and of the float networks."""
    references = set(part["variant"][is_reference(part)])
    series = {name: rows.set_index("epoch")["prec1"].sort_index() for name, rows in part.groupby("variant", sort=False)}
    return (
        {name: curve for name, curve in series.items() if name not in references},
        {name: curve for name, curve in series.items() if name in references},
    )


def _reference_looks(frame: pd.DataFrame) -> dict[str, Look]:
    """A start is dashed, the first of the others solid."""
    names = list(dict.fromkeys(frame["variant"][is_reference(frame)]))
    starts = set(frame["variant"][is_start(frame)])
    solid = [name for name in names if name not in starts]
    lines = {name: REFERENCE_LINES[min(number, len(REFERENCE_LINES) - 1)] for number, name in enumerate(solid)}
    return {name: Look(BLACK, lines.get(name, START_LINE), "") for name in names}


def _width(reference: Look) -> float:
    """Of a float network's line: thin for a start, thick for the rest."""
    return 1.2 if reference.line == START_LINE else 2.6


def _epoch_zoom(part: pd.DataFrame) -> Limits | None:
    """Limits for the variants that end near the float network, None where one axis is enough."""
    curves, references = _curves(part)
    return zoom_limits(curves, next(iter(references.values()))) if references else None


def last_zoom(part: pd.DataFrame) -> Limits | None:
    """Limits for the variants near the float network, None where one axis is enough."""
    quantized = part[~is_reference(part)]
    curves = {str(index): pd.Series([value]) for index, value in quantized["prec1"].items()}
    float_prec1 = part[is_reference(part)]["prec1"]
    limits = zoom_limits(curves, pd.Series([float_prec1.mean()])) if len(float_prec1) else None
    if limits is None or not quantized.duplicated(["variant", "bits"]).any():
        return limits
    bars = deviations(part)
    bars = bars[bars >= limits[0]]
    return min(limits[0], bars.min() - 0.1), max(limits[1], min(bars.max() + 0.1, 101.0))


def _over_what(table: pd.DataFrame) -> str:
    """What a heading says of means: over seeds of a training, over draws of calibration images."""
    over = ["seeds"] if (table.groupby("group")["seed"].nunique() > 1).any() else []
    over += ["draws"] if any(repeat.over == "draws" for repeat in repeats(table)) else []
    return f", mean and sd over {' and '.join(over)}" if over else ""


def _line_label(mode: str, family: Family, families: Sequence[Family]) -> str:
    """The mode, and of the family what distinguishes it from the others."""
    if mode == OWN:
        return family[1]
    name = "float (control)" if mode == "float" else mode
    differing = [item for item in range(len(family)) if len({other[item] for other in families}) > 1]
    # A half network has a policy and an input, no quantizer and no granularity.
    return ", ".join([name, *(str(family[item]) for item in differing if mode != "half" or item in (0, 3))])
