"""Lines of Prec@1 over weight bits: their points with bars, where these stand, and how many lines are told apart in panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from qexp.reporting.figures.curves import OWN, LineKey, is_reference, line_keys
from qexp.reporting.figures.marks import percent_text, points, tell
from qexp.reporting.figures.style import LINES, MARKERS, MAX_PANELS, Look, spread_colors
from qexp.reporting.frames.summary import Family
from qexp.reporting.statistics.paired import wilson_ends

MAX_LINES = 8  # that can be distinguished in one panel
# Parts of a line's family by which panels are made, the first that leaves few lines in each: quantizer, granularity, width of the
# activations, policy, input.
FACETS = (1, 2, -1, 0, 3)


def bars(variants: pd.DataFrame) -> pd.DataFrame:
    """Mean Prec@1 of each variant of a width, `prec1`, with the ends of its bar, `low` and `high`, and `sd`.

    A bar is one standard deviation up and down where there are several seeds or draws, else the 95 % Wilson interval, which a
    number that a test stopped has not.

    Args:
        variants: rows of copies.
    """
    groups = variants.groupby(["bits", "variant"], sort=True)
    ends = variants[["bits", "variant"]].join(wilson_ends(variants)).groupby(["bits", "variant"], sort=True).first()
    table = groups["prec1"].agg(prec1="mean", sd="std").join(ends).reset_index()
    low = (table["prec1"] - table["sd"]).fillna(table["low"])
    high = (table["prec1"] + table["sd"]).fillna(table["high"])
    return table.assign(low=low, high=high)


def bar_ends(part: pd.DataFrame) -> pd.Series:
    """All that an axis has to hold: the float networks and the ends of all bars, by position."""
    drawn = bars(part[~is_reference(part)])
    return pd.concat([part["prec1"][is_reference(part)], drawn["prec1"], drawn["low"], drawn["high"]], ignore_index=True)


def over_bits(axes: Axes, bits: Sequence[float], ticks: Sequence[int]) -> np.ndarray:
    """Label the axis of widths, which stand at equal distances; returns where each of `bits` does."""
    axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    axes.set_xlim(-0.35, len(ticks) - 0.65)
    return np.interp(bits, ticks, range(len(ticks)))


def ticks_of(widths: Sequence[float]) -> list[int]:
    """Widths that were tried, and on both sides of a mean those that it stands between, unless it is all but one of them."""
    near = [round(width) if abs(width - round(width)) < 0.05 else None for width in widths]
    ends = [(math.floor(width), math.ceil(width)) if one is None else (one,) for width, one in zip(widths, near, strict=True)]
    return sorted({tick for pair in ends for tick in pair})


def shifts_of(keys: Sequence[LineKey], bits: pd.Series, order: Sequence[LineKey]) -> dict[tuple[LineKey, int], float]:
    """(line, width) -> how far its point stands beside the tick: those of a width are set a little apart, around it.

    As int and its control do at high widths, they would lie on each other.

    Args:
        keys: of the rows.
        bits: of the rows.
        order: of the lines.
    """
    shifts: dict[tuple[LineKey, int], float] = {}
    step = min(0.07, 0.4 / len(order))
    for width in set(bits):
        of_width = {key for key, other in zip(keys, bits, strict=True) if other == width}
        present = [key for key in order if key in of_width]
        shifts |= {(key, width): (number - (len(present) - 1) / 2) * step for number, key in enumerate(present)}
    return shifts


def bits_line(axes: Axes, variants: pd.DataFrame, look: Look, positions: Mapping[int, float], name: str, low: float) -> None:
    """One family's line with its bars; points without a line where several of its variants have the same bits.

    Args:
        axes: to draw on.
        variants: rows of the family.
        look: of the line.
        positions: width -> abscissa.
        name: of the line.
        low: end of the axis; what lies below it has no bar, of which only a part would be seen.
    """
    drawn = bars(variants)
    x, unique = [positions[width] for width in drawn["bits"]], drawn["bits"].is_unique
    (line,) = axes.plot(x, drawn["prec1"], color=look.color, linestyle=look.line if unique else "none", linewidth=1.5)
    tell(line, name)
    seen = drawn["prec1"] >= low
    tell(axes.vlines(np.array(x)[seen], drawn["low"][seen], drawn["high"][seen], color=look.color, linewidth=0.9), name)
    told = []
    for row in drawn.itertuples():
        spread = percent_text(row.prec1, row.low, row.high) if np.isnan(row.sd) else f"{percent_text(row.prec1)}, sd {row.sd:.2f}"
        told.append((name, f"{row.variant}: {spread}"))
    points(axes, x, list(drawn["prec1"]), look.color, look.marker, 5, told)


def line_looks(lines: Sequence[LineKey]) -> dict[LineKey, Look]:
    """Line -> its look: line style by mode, colour and marker by family; those of one family share them.

    Args:
        lines: in their order.
    """
    families = {family for mode, family in lines if mode not in ("half", OWN)}
    slots = {key: key[1] if len(families) > 1 and key[0] not in ("half", OWN) else key for key in lines}
    numbers = {slot: number for number, slot in enumerate(dict.fromkeys(slots.values()))}
    colors = spread_colors(len(numbers))
    return {
        key: Look(colors[numbers[slot]], LINES.get(key[0], "-"), MARKERS[numbers[slot] % len(MARKERS)])
        for key, slot in slots.items()
    }


def line_label(mode: str, family: Family, families: Sequence[Family], behind: str = "") -> str:
    """The mode, and of the family what distinguishes it from the others.

    Args:
        mode: of the line.
        family: of the line.
        families: of all lines.
        behind: what stands behind the label of copies.
    """
    if mode == OWN:
        return family[1]
    name = "float (control)" if mode == "float" else mode
    differing = [item for item in range(len(family)) if len({other[item] for other in families}) > 1]
    # A half network has a policy and an input, no quantizer and no granularity.
    return ", ".join([name, *(str(family[item]) for item in differing if mode != "half" or item in (0, 3))]) + behind


def facet_of(lines: Sequence[LineKey]) -> int | None:
    """The part of the family that makes small multiples of too many lines; None where one panel shows them all.

    Args:
        lines: of one panel.
    """
    families = [family for mode, family in lines if mode not in ("half", OWN)]
    if len(lines) <= MAX_LINES:
        return None
    counts = {
        facet: max(sum(other[facet] == family[facet] for other in families) for family in families)
        for facet in FACETS
        if 1 < len({family[facet] for family in families}) <= MAX_PANELS
    }
    few = [facet for facet, count in counts.items() if count <= MAX_LINES]
    return few[0] if few else min(counts, key=lambda facet: counts[facet], default=None)


def within_facet(key: LineKey, facet: int | None) -> LineKey:
    """What a line is called and looks like in its panel: without the part that the panel's title says.

    Args:
        key: of the line.
        facet: of `facet_of`.
    """
    mode, family = key
    if facet is None or mode in ("half", OWN):
        return key
    number = facet % len(family)
    return mode, (*family[:number], "", *family[number + 1 :])


def facets(part: pd.DataFrame, facet: int) -> list[tuple[str, pd.DataFrame]]:
    """Panels of one part: title and rows of each, the float networks in all; what has no such part is in all as well.

    Args:
        part: rows of a panel.
        facet: of `facet_of`.
    """
    shared = is_reference(part)
    values = pd.Series("", index=part.index)
    keys = line_keys(part[~shared])
    values[~shared] = ["" if mode in ("half", OWN) else str(family[facet]) for mode, family in keys]
    names = dict.fromkeys(value for value in values if value)
    return [(name, part[values.isin(["", name])]) for name in names]
