"""Prec@1 against epoch, one curve per variant, and Prec@1 against bits, one line per family.

Where some variants end at chance level and others beside the float network, a panel has a second, magnified axis: on a shared one
either the collapse or the fraction of a point that matters cannot be seen. Drawn on `Figure` objects, as pyplot keeps global
state.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qexp.reporting.figures.bits_lines import (
    bar_ends,
    bars,
    bits_line,
    facet_of,
    facets,
    line_label,
    line_looks,
    over_bits,
    shifts_of,
    ticks_of,
    within_facet,
)
from qexp.reporting.figures.curves import (
    MAX_BANDS,
    OWN,
    band_limits,
    curve_looks,
    draw_band,
    draw_curve,
    epoch_curves,
    few_panels,
    is_reference,
    is_start,
    last_points,
    line_keys,
)
from qexp.reporting.figures.layout import Limits, label_ends, lay_out, panels_of
from qexp.reporting.figures.marks import tell
from qexp.reporting.figures.style import (
    Look,
    legend_entry,
    looks,
    padded,
    percent_axis,
    title,
    zoom_limits,
)
from qexp.reporting.frames.comparison import has_qat
from qexp.reporting.frames.repeats import is_further_draw, over_draws, repeats, without_draws
from qexp.reporting.frames.summary import summarize

BLACK = "#000000"
REFERENCE_LINES, START_LINE = ("-", (0, (5, 1.5)), (0, (2, 1))), (0, (6, 3))


def prec1_by_epoch(records: pd.DataFrame) -> Figure:
    """Prec@1 of every variant after every epoch; a panel per training, the float network thick and black.

    Of more trainings than `MAX_PANELS` those that differ in their seed are one panel, of means; where these are still more, the
    first of them are drawn, and the heading says how many there are.

    Args:
        records: of `load_records`.
    """
    frame, subset = few_panels(_merged(records))
    styles = (curve_looks if has_qat(frame) else looks)(frame[~is_reference(frame)])
    references = _reference_looks(frame)
    panels = panels_of(frame, "label")
    zooms = [_epoch_zoom(part) for _, part in panels]
    direct = len(panels) == 1 and not any(zooms) and len(styles) + len(references) <= MAX_BANDS

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
        ends = pd.concat([values, *(band[end].astype(float) for band in bands.values() for end in ("low", "high"))])
        percent_axis(axes, limits or padded(ends.min(), ends.max(), least=2.0))
        if direct:
            shown = {name: look.color for name, look in styles.items()} | dict.fromkeys(references, BLACK)
            last = {name: curve.dropna() for name, curve in (*float_curves.items(), *curves.items())}
            label_ends(
                axes,
                [(f"{name} {line.iloc[-1]:.2f}", line.index[-1], line.iloc[-1], shown[name]) for name, line in last.items()],
                height=2.8,
            )

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
    averaged = "sd" in frame and frame["sd"].notna().any()
    heading = "Prec@1 after every epoch" if has_qat(frame) else "Prec@1 of the quantized copies after every epoch"
    heading += ", mean over seeds, band one sd" if averaged else ", with 95 % intervals" if len(styles) <= MAX_BANDS else ""
    heading = title(frame, heading + subset)
    return lay_out(panels, zooms, draw, [] if direct else handles, heading, monospace=final is not None)


def prec1_by_bits(records: pd.DataFrame) -> Figure | None:
    """Prec@1 at the last epoch against weight bits; a line per mode and family, the float network as a line across.

    A bar is the 95 % Wilson interval; repeated seeds or draws are one panel: means, with a bar of one standard deviation. More
    lines of one training than can be told apart are small multiples, by quantizer where that suffices. None where fewer than two
    widths were tried.

    Args:
        records: of `load_records`.
    """
    table = summarize(records)
    table = over_draws(table) if (table.groupby("group")["seed"].nunique() > 1).any() else without_draws(table)
    if has_qat(table):
        table = last_points(table)
    widths = sorted(set(table["bits"][~is_reference(table)]))
    ticks = ticks_of(widths)
    if len(ticks) < 2:
        return None
    lines = list(dict.fromkeys(line_keys(table[~is_reference(table)])))
    panels = panels_of(table, "group")
    facet = facet_of(lines) if len(panels) == 1 else None
    if facet is not None:
        panels = facets(panels[0][1], facet)
    drawn_as = {key: within_facet(key, facet) for key in lines}
    styles, references = line_looks(list(dict.fromkeys(drawn_as.values()))), _reference_looks(table)
    families = [family for mode, family in styles if mode not in ("half", OWN)]
    behind = " after training" if any(mode == OWN for mode, _ in lines) else ""
    labels = {(mode, family): line_label(mode, family, families, behind) for mode, family in styles}

    def draw(axes: Axes, part: pd.DataFrame, limits: Limits | None) -> None:
        for name, rows in part[is_reference(part)].groupby("variant", sort=False):
            prec1, width = rows["prec1"].mean(), min(_width(references[name]), 2.0)
            level = axes.axhline(prec1, color=BLACK, zorder=1.9, linestyle=references[name].line, linewidth=width)
            tell(level, str(name))
        quantized = part[~is_reference(part)]
        keys = [drawn_as[key] for key in line_keys(quantized)]
        shifts, places = shifts_of(keys, quantized["bits"], list(styles)), over_bits(axes, widths, ticks)
        for key in dict.fromkeys(keys):
            positions = {width: place + shifts.get((key, width), 0.0) for width, place in zip(widths, places, strict=True)}
            rows = quantized.loc[[line == key for line in keys]]
            bits_line(axes, rows, styles[key], positions, labels[key], limits[0] if limits else -math.inf)
        axes.set_xlabel("weight bits" + (", mean" if "widths" in part else ""))
        ends = bar_ends(part)
        percent_axis(axes, limits or padded(ends.min(), ends.max(), least=2.0))

    handles = [legend_entry(name, BLACK, look.line, width=min(_width(look), 2.0)) for name, look in references.items()]
    handles += [legend_entry(labels[key], look.color, look.line, look.marker, 5) for key, look in styles.items()]
    heading = title(table, "Prec@1 against weight bits, last epoch, " + _bars_words(table))
    return lay_out(panels, [bits_zoom(part) for _, part in panels], draw, handles, heading)


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
    """Limits for the variants that end near the float network, with their later bands; None where one axis is enough."""
    curves, references = _curves(part)
    limits = zoom_limits(curves, next(iter(references.values()))) if references else None
    if limits is None:
        return None
    for name, band in band_limits(part, curves, references).items():
        if {**curves, **references}[name].iloc[-1] >= limits[0]:
            later = band.iloc[len(band) // 2 :].astype(float)
            limits = min(limits[0], later["low"].min() - 0.1), max(limits[1], min(later["high"].max() + 0.1, 101.0))
    return limits


def last_zoom(part: pd.DataFrame) -> Limits | None:
    """Limits for the variants near the float network, None where one axis is enough."""
    quantized = part[~is_reference(part)]
    curves = {str(index): pd.Series([value]) for index, value in quantized["prec1"].items()}
    float_prec1 = part[is_reference(part)]["prec1"]
    return zoom_limits(curves, pd.Series([float_prec1.mean()])) if len(float_prec1) else None


def bits_zoom(part: pd.DataFrame) -> Limits | None:
    """`last_zoom` with room for the bars of the points within it."""
    limits = last_zoom(part)
    if limits is None:
        return None
    drawn = bars(part[~is_reference(part)])
    near = drawn[drawn["prec1"] >= limits[0]]
    return min(limits[0], near["low"].min() - 0.1), max(limits[1], min(near["high"].max() + 0.1, 101.0))


def _bars_words(table: pd.DataFrame) -> str:
    """What a heading says of bars: of means over seeds of a training, over draws of calibration images, or of single numbers."""
    over = ["seeds"] if (table.groupby("group")["seed"].nunique() > 1).any() else []
    over += ["draws"] if any(repeat.over == "draws" for repeat in repeats(table)) else []
    if not over:
        return "with 95 % intervals"
    single = table[~is_reference(table)].groupby(["group", "bits", "variant"]).size().min() == 1
    return f"mean and sd over {' and '.join(over)}" + (", of a single one its 95 % interval" if single else "")
