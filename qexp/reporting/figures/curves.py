"""What the figures draw of quantization-aware trainings: a comparison is one panel, its curves are means over seeds."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from qexp.base.text import counted
from qexp.reporting.figures.marks import percent_text, points, tell
from qexp.reporting.figures.style import LINES, MARKERS, MAX_PANELS, Look, looks, spread_colors
from qexp.reporting.frames.comparison import LINEAGE, has_qat
from qexp.reporting.frames.names import shared_words
from qexp.reporting.frames.summary import MEASUREMENT, Family, family_keys
from qexp.reporting.statistics.paired import wilson_ends
from qexp.tracking.record import FLOAT_VARIANT

OWN = "qat"  # mode and policy of curves that were trained with their quantization
WIDTH_LINES = ("-", LINES["float"], LINES["half"], (0, (6, 1.4, 1, 1.4)))  # from the widest on
LineKey = tuple[str, Family]  # mode, and family with the width of its activations


def is_reference(frame: pd.DataFrame) -> pd.Series:
    """True in the rows of float networks, whatever their curves are called: `fp32`, `float start`, `float control`."""
    return frame["reference"].ne("") if "reference" in frame else frame["variant"] == FLOAT_VARIANT


def is_start(frame: pd.DataFrame) -> pd.Series:
    """True in the rows of a float network that is drawn as the start of a comparison."""
    return frame["reference"].eq("start") if "reference" in frame else frame["variant"].isna()


def _with_reference(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `reference`: what a float network is drawn as, empty for copies."""
    return frame.assign(reference=[FLOAT_VARIANT if variant == FLOAT_VARIANT else "" for variant in frame["variant"]])


def epoch_curves(records: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw against the epoch: `label` is the panel, `variant` the curve, `prec1` its mean and `sd` its deviation.

    A comparison holds its quantization-aware networks and its float control, with the copies of that which were quantized
    afterwards; without a control the start is a level line. Other float trainings have a panel each.

    Args:
        records: of the rows of `table`.
        table: of `summarize`.
    """
    rows = {tuple(key): number for number, key in enumerate(table[MEASUREMENT].itertuples(index=False))}
    numbers = [rows[tuple(key)] for key in records[MEASUREMENT].itertuples(index=False)]
    words = shared_words(table)
    frame = records.assign(**{name: table[name].to_numpy()[numbers] for name in (*LINEAGE, "label")}, order=numbers)
    frame = _with_reference(frame.assign(variant=[label.without(words).text for label in frame["named"]]))
    panels = [_comparison(part) for _, part in _compared(frame).groupby("comparison", sort=False)]
    copied = frame[~is_reference(frame)]["training"]
    alone = frame["role"].eq("float") | (frame["role"].eq("start") & frame["training"].isin(copied) & frame["method"].eq(""))
    if not panels and not alone.any():
        alone = frame["role"].eq("checkpoint")
    return pd.concat([*panels, frame[alone].assign(sd=float("nan"))]).sort_values("order", kind="stable")


def few_panels(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows that a figure has room for, a panel per `label`, and what its heading says of those that it leaves out.

    Up to `MAX_PANELS` trainings as they are. Of more, repeats of a training with other seeds are one: `prec1` is their mean and
    `sd` their deviation, over those that got as far as any, so that each epoch has the same; of still more the first ones.

    Args:
        frame: rows to draw against the epoch.
    """
    panel = ["label", "split", "n"]
    if len(frame[panel].drop_duplicates()) <= MAX_PANELS:
        return frame, ""
    keys, short = ["group", "variant", "split", "n", "epoch"], ""
    if not has_qat(frame):  # whose rows are means already
        last = frame.groupby("label")["epoch"].transform("max")
        whole = last == last.groupby(frame["group"]).transform("max")
        if not whole.all():
            short = f"; {counted(frame.loc[~whole, 'label'].nunique(), 'training')} that ended earlier not among them"
        frame = frame[whole]
        means = frame.groupby(keys, sort=False)["prec1"].agg(prec1="mean", sd="std").reset_index()
        frame = frame.drop_duplicates(keys).drop(columns="prec1").merge(means, on=keys).assign(label=lambda rows: rows["group"])
    listed = frame[panel].drop_duplicates()
    if len(listed) <= MAX_PANELS:
        return frame, short
    first = frame.merge(listed.head(MAX_PANELS), on=panel)
    return first, f"{short}; the first {MAX_PANELS} of {len(listed)} trainings, epochs.csv has all"


def last_points(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a comparison as one `group`, for the figure over bits: lines of a method, and of copies of the control.

    Where there is no control, copies of the float start stand for those.

    Args:
        table: of `summarize`.
    """
    table = _with_reference(table)
    compared = _compared(table)
    others = table[table["role"].eq("float") | (table["role"].eq("checkpoint") & table["role"].eq("checkpoint").all())]
    parts = [_references(part) for _, part in compared.groupby("comparison", sort=False)]
    drawn = pd.concat([_own(part).assign(group=_title(part)) for part in parts] + [others])
    return drawn.sort_index()


def curve_looks(variants: pd.DataFrame) -> dict[str, Look]:
    """Curve -> its look where methods are compared: colour and marker by method, line by bits; else that of `looks`.

    Args:
        variants: one row per variant, float networks excepted.
    """
    variants = variants.drop_duplicates("variant")
    families = list(zip(variants["mode"], family_keys(variants), strict=True))
    numbers = {family: number for number, family in enumerate(dict.fromkeys(families))}
    widths = {width: number for number, width in enumerate(sorted(set(variants["bits"]), reverse=True))}
    colors = spread_colors(len(numbers))
    styles = {
        name: Look(colors[numbers[family]], WIDTH_LINES[widths[bits] % len(WIDTH_LINES)], MARKERS[numbers[family] % len(MARKERS)])
        for name, bits, family in zip(variants["variant"], variants["bits"], families, strict=True)
    }
    return styles if len(set(map(repr, styles.values()))) == len(styles) else looks(variants)


def line_keys(frame: pd.DataFrame) -> list[LineKey]:
    """Mode and family of each row, with the width of its activations: what is one line over weight bits.

    `A=W` where they are as wide as the weights along the line. Networks trained with their quantization have their method's name.
    """
    lines = list(zip(frame["mode"], family_keys(frame), strict=True))
    if "activation_bits" not in frame:
        return [(mode, (*family, "A32")) for mode, family in lines]
    pairs: dict[LineKey, set[tuple[int, int]]] = {}
    activations = [None if pd.isna(bits) else int(bits) for bits in frame["activation_bits"]]
    for line, bits, width in zip(lines, frame["bits"], activations, strict=True):
        if width is not None:
            pairs.setdefault(line, set()).add((int(bits), width))
    keys = []
    for line, width in zip(lines, activations, strict=True):
        mode, family = line
        several = len({other for _, other in pairs.get(line, ())}) > 1
        tied = several and all(bits == other for bits, other in pairs[line])
        text = "" if mode == OWN else "A32" if width is None else "A=W" if tied else f"A{width}"
        keys.append((mode, (*family, text)))
    return keys


def _compared(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that belong to a comparison; the masters of a network that began with random weights are not shown."""
    masters = (frame["role"] == "qat") & (frame["variant"] == FLOAT_VARIANT)
    return frame[frame["comparison"].notna() & ~masters]


def _comparison(part: pd.DataFrame) -> pd.DataFrame:
    """One panel's rows, means over seeds."""
    title = _title(part)
    order: dict[str, int] = {}
    part = _own(_references(part))
    start = is_start(part)
    if not part["role"].eq("control").any():
        part = pd.concat([_level(part[start], part[~start & part["role"].ne("start")]), part[~start & part["role"].ne("start")]])
    for row in part.itertuples():
        order.setdefault(row.variant, row.order)
    keys = ["variant", "split", "n", "epoch"]
    means = part.groupby(keys, sort=False)["prec1"].agg(prec1="mean", sd="std", seeds="size").reset_index()
    first = part.drop_duplicates(keys).drop(columns=["prec1"])
    drawn = first.merge(means, on=keys).assign(label=title)
    return drawn.assign(order=drawn["variant"].map(order))


def _references(part: pd.DataFrame) -> pd.DataFrame:
    """Name the float networks of a comparison; of start and control the control is drawn, with its copies."""
    if part["role"].eq("control").any():
        part = part[part["role"] != "start"]
    is_float = is_reference(part)
    drawn_as = part["reference"].mask(is_float & part["role"].eq("start"), "start")
    return part.assign(variant=part["variant"].mask(is_float, part["curve"]), reference=drawn_as)


def _own(part: pd.DataFrame) -> pd.DataFrame:
    """Name quantization-aware networks by what their training is called, and their line by the method."""
    trained = part["role"] == "qat"
    changed = {"variant": part["curve"], "mode": OWN, "policy": OWN, "quant": part["method"], "granularity": ""}
    return part.assign(**{name: part[name].mask(trained, values) for name, values in changed.items()})


def _level(start: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The start's last Prec@1, mean over seeds, at every epoch of the others."""
    if start.empty or others.empty:
        return start.head(0)
    last = start.loc[start.groupby("training")["epoch"].idxmax()]
    epochs = sorted(set(others["epoch"]))
    row = last.head(1).assign(prec1=last["prec1"].mean())
    return pd.concat([row.assign(epoch=epoch) for epoch in epochs])


def _title(part: pd.DataFrame) -> str:
    return part["comparison"].iloc[0] or "quantization-aware trainings"


MAX_BANDS = 6


def band_limits(
    part: pd.DataFrame, curves: Mapping[str, pd.Series], float_curves: Mapping[str, pd.Series]
) -> dict[str, pd.DataFrame]:
    """Low and high of the bands by curve: one standard deviation over seeds, else the interval of each accuracy.

    Of many curves only the float networks have one: bands that cover each other show nothing.
    """
    named = {*float_curves, *(curves if len(curves) <= MAX_BANDS else ())}
    bands = {}
    for name, rows in part[part["variant"].isin(named)].groupby("variant", sort=False):
        rows = rows.set_index("epoch").sort_index()
        if "sd" in rows and rows["sd"].notna().any():
            bands[name] = pd.DataFrame({"low": rows["prec1"] - rows["sd"], "high": rows["prec1"] + rows["sd"]})
        else:
            bands[name] = wilson_ends(rows)
    return bands


def draw_band(axes: Axes, bands: Mapping[str, pd.DataFrame], name: str, color: str) -> None:
    """The band of a curve, if it has one."""
    if name in bands:
        band = bands[name].astype(float)
        tell(axes.fill_between(band.index, band["low"], band["high"], color=color, alpha=0.13, linewidth=0), name)


def draw_curve(axes: Axes, name: str, curve: pd.Series, look: Look, width: float) -> None:
    """Prec@1 by epoch with some ten markers, each of which says its number.

    Args:
        axes: to draw on.
        name: of the curve.
        curve: epoch -> Prec@1.
        look: of the curve; that of a float network has no marker, and its points are dots within the line.
        width: of the line, points.
    """
    order = 2.0 if look.marker else 1.9
    (line,) = axes.plot(curve.index, curve, color=look.color, linestyle=look.line, linewidth=width, zorder=order)
    tell(line, name)
    marked = curve[:: max(1, len(curve) // 10)]
    told = [(name, f"{name}, epoch {epoch}: {percent_text(value)}") for epoch, value in marked.items()]
    size = 3.2 if look.marker else max(width - 1.0, 0.5)  # an edge of one point is around it
    points(axes, list(marked.index), list(marked), look.color, look.marker or "o", size, told)
