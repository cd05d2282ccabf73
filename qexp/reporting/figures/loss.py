"""What quantizing costs while a network trains: points of Prec@1 against the float network of the same epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qexp.reporting.figures.bits_lines import MAX_LINES, line_label, line_looks
from qexp.reporting.figures.curves import MAX_BANDS, line_keys
from qexp.reporting.figures.layout import PAGE_HEIGHT, PANELS_PER_ROW, label_ends
from qexp.reporting.figures.marks import points, tell
from qexp.reporting.figures.style import MAX_PANELS, Look, drawing, legend_entry, looks, title
from qexp.reporting.frames.comparison import has_qat
from qexp.reporting.frames.repeats import is_further_draw
from qexp.reporting.frames.summary import is_float, summarize
from qexp.reporting.statistics.paired import ALPHA, MARGIN
from qexp.stats.interval import newcombe_ends

PANEL_WIDTH, PANEL_HEIGHT = 3.3, 2.7  # inches
FAINT, CLEAR = 0.10, 0.22  # opacity of a band: of both accuracies alone, of image by image


def loss_by_epoch(records: pd.DataFrame) -> Figure | None:
    """Points against fp32 after every epoch, with 95 % intervals: a panel of its own scale for each width, a line per family.

    An interval is that of images compared one by one where predictions of the epoch were kept (`evaluate.keep`), else
    Newcombe's of both accuracies alone, which is wider and drawn fainter. Repeated seeds are means, with a band of one standard
    deviation. None where there is a single epoch, where trainings with quantization are compared, whose figure is
    `prec1_by_epoch`, and where lines or panels are too many to be told apart.

    Args:
        records: of `with_statistics`.
    """
    table = summarize(records)
    table = table[~is_further_draw(table)]
    if has_qat(table) or is_float(table).all() or records["epoch"].nunique() < 2:
        return None
    rows = _rows(records, table)
    panels = [part for _, part in rows.groupby(["group", "split", "n", "bits"], sort=False)]
    if len(panels) > MAX_PANELS or max(part["variant"].nunique() for part in panels) > MAX_LINES:
        return None
    lines = list(dict.fromkeys(rows["line"]))
    styles, families = line_looks(lines), [family for _, family in lines]
    labels = {(mode, family): line_label(mode, family, families) for mode, family in lines}
    columns = min(len(panels), PANELS_PER_ROW)
    num_rows = -(-len(panels) // columns)
    height = min(PANEL_HEIGHT, (PAGE_HEIGHT - 1.2) / num_rows)
    seeds = rows["num_seeds"].max() > 1
    single = ", of a single one its 95 % interval" if rows["num_seeds"].min() == 1 else ""
    bars = f"mean and sd over seeds{single}" if seeds else "95 % intervals"
    heading = title(records, f"Points of Prec@1 against fp32 of the same epoch, {bars}") + "\ndotted: half a point"
    if not rows["paired"][rows["num_seeds"] == 1].all():
        heading += "; faint: of both accuracies alone, where predictions were not kept"
    named = len(lines) > 1
    # Lines of a panel are told apart by their colours; a line alone has that of its variant in the other figures.
    colors = {} if named else {name: look.color for name, look in looks(table[~is_float(table)]).items()}
    with drawing(max(5.0, PANEL_WIDTH * columns), height * num_rows + 0.9 + 0.2 * named, heading, 11) as figure:
        grid = figure.subplots(num_rows, columns, squeeze=False)
        for axes, part in zip(grid.flat, panels, strict=False):
            axes.set_title(_heading(part, rows), loc="left")
            _panel(axes, part, styles, colors, 0.62 * height)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("points")
        if named:
            handles = [legend_entry(labels[key], look.color, look.line, look.marker, 5) for key, look in styles.items()]
            figure.legend(handles=handles, loc="outside lower left", ncols=columns, handlelength=3.4)
    return figure


def _heading(part: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The width of a panel, and of training and images what not all panels share."""
    first, measured = part.iloc[0], rows[["split", "n"]].drop_duplicates()
    shown = [str(first["group"])] if rows["group"].nunique() > 1 else []
    shown += [f"{first['split']} n={first['n']}"] if len(measured) > 1 else []
    return ", ".join([*shown, f"{first['bits']:g} bits"])


def _rows(records: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """A row per group, variant and epoch by falling bits: mean `loss`, ends `low` and `high`, `paired`, `num_seeds`, `line`."""
    keys = ["training", "variant_key", "split", "n"]
    listed = table[~is_float(table)]
    kept = records.merge(listed[keys], on=keys)
    measured = ["training", "split", "n", "epoch"]
    of_float = pd.MultiIndex.from_frame(kept[measured]).isin(pd.MultiIndex.from_frame(records[is_float(records)][measured]))
    ends = kept.reindex(columns=["ci_low", "ci_high"]).astype(float).set_axis(["low", "high"], axis=1)
    paired = ends["low"].notna()
    alone = kept[of_float & ~paired]
    n = alone["n"].to_numpy(dtype=int)
    before, after = (
        np.rint(prec1.to_numpy(dtype=float) * n / 100).astype(int)
        for prec1 in (alone["prec1"] - alone["delta_prec1"], alone["prec1"])
    )
    ends.loc[alone.index] = np.column_stack(newcombe_ends(before, after, n, level=1 - ALPHA))
    kept = kept.assign(low=ends["low"], high=ends["high"], paired=paired, line=line_keys(kept))
    over = ["group", "variant", "split", "n", "epoch"]
    means = kept.groupby(over, sort=False).agg(
        loss=("delta_prec1", "mean"), sd=("delta_prec1", "std"), num_seeds=("seed", "nunique"), low=("low", "first"),
        high=("high", "first"), paired=("paired", "first"), bits=("bits", "first"), line=("line", "first"),
    ).reset_index()  # fmt: skip
    repeated = means["num_seeds"] > 1
    low, high = means["loss"] - means["sd"], means["loss"] + means["sd"]
    means = means.assign(low=means["low"].mask(repeated, low), high=means["high"].mask(repeated, high))
    return means.sort_values(["bits", "epoch"], ascending=[False, True], kind="stable")


def _panel(
    axes: Axes, part: pd.DataFrame, styles: dict[tuple[str, tuple[str, ...]], Look], colors: dict[str, str], height: float
) -> None:
    """The lines of one width, each with its intervals; the last loss beside a line where they are few."""
    axes.axhline(0, color="#000000", linewidth=1.2, zorder=1.8)
    low, high = min(part["low"].min(), -MARGIN), max(part["high"].max(), MARGIN)
    axes.axhline(-MARGIN, color="#7F7F7F", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1.8)
    banded, ends = part["variant"].nunique() <= MAX_BANDS, []
    for name, line in part.groupby("variant", sort=False):
        look = styles[line["line"].iloc[0]]
        look = replace(look, color=colors.get(str(name), look.color))
        if banded:
            _bands(axes, str(name), line, look.color)
        (drawn,) = axes.plot(line["epoch"], line["loss"], color=look.color, linestyle=look.line, linewidth=1.5)
        tell(drawn, str(name))
        told = [(str(name), _told(str(name), row)) for row in line.itertuples()]
        points(axes, list(line["epoch"]), list(line["loss"]), look.color, look.marker, 3.6, told)
        ends.append((f"{line['loss'].iloc[-1]:+.2f}", float(line["epoch"].iloc[-1]), float(line["loss"].iloc[-1]), look.color))
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    if banded:
        label_ends(axes, ends, height)


def _bands(axes: Axes, name: str, line: pd.DataFrame, color: str) -> None:
    """The intervals of a line: a band, and a bar where one of images compared one by one stands among those that are not."""
    sure = line["paired"].astype(bool) | (line["num_seeds"] > 1)
    band = line.astype({"low": float, "high": float})
    opacity = CLEAR if sure.all() else FAINT
    faint = band if sure.all() else band[~sure]
    tell(axes.fill_between(faint["epoch"], faint["low"], faint["high"], color=color, alpha=opacity, linewidth=0), name)
    if not sure.all():
        clear = band[sure]
        tell(axes.vlines(clear["epoch"], clear["low"], clear["high"], color=color, linewidth=1.2), name)


def _told(name: str, row: object) -> str:
    """What a point is."""
    epoch, loss, low, high = (getattr(row, key) for key in ("epoch", "loss", "low", "high"))
    return f"{name}, epoch {epoch}: {loss:+.2f} points, {low:+.2f} to {high:+.2f}"
