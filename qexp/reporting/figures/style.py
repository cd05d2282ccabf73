"""How curves look: colours for colour-blind readers too, line styles by mode, markers by family, and axes in percent."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from qexp.base.files import write_bytes_atomic
from qexp.reporting.figures.marks import with_titles
from qexp.reporting.frames.protocol import planned_images
from qexp.reporting.frames.summary import family_keys

Value = TypeVar("Value")
# Okabe and Ito (2008), without black, which is the float network's, and with yellow last, as it is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#F0E442")
LineStyle = str | tuple[int, tuple[float, ...]]  # a name, or an offset and lengths of dashes and gaps
LINES: dict[str, LineStyle] = {"int": "-", "float": (0, (4, 1.6)), "half": (0, (1, 1.4))}
MAX_PANELS = 12  # that a page has room for
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CLOSE_POINTS = 5.0  # curves that end this close to the float network deserve an axis of their own
SPREAD_POINTS = 12.0  # if others end this far below
PNG_DPI, MARGIN = 150, 0.12  # pixels an inch, inches around all that is drawn
KINDS = ("png", "svg")
PAPER = ("pdf", *KINDS)  # embedding fonts takes longer than drawing, so PDFs are written where they are asked for
RC = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "qexp",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may have a dollar sign
    "pdf.fonttype": 42,  # letters stay letters, which journals ask for
}


@contextmanager
def drawing(width: float, height: float, heading: str = "", size: float = 9) -> Iterator[Figure]:
    """A figure in this style, drawn on within.

    Args:
        width: inches.
        height: inches.
        heading: above it, on the left.
        size: of the heading, points.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if heading:
            figure.suptitle(heading, x=0.01, ha="left", fontsize=size)


def legend_entry(
    label: str, color: str, line: LineStyle = "none", marker: str = "", size: float = 6.0, width: float = 1.5
) -> Line2D:
    """What stands in a legend for what is drawn so; sizes in points."""
    return Line2D([], [], color=color, linestyle=line, marker=marker, markersize=size, linewidth=width, label=label)


@dataclass(frozen=True)
class Look:
    """How one variant is drawn.

    Args:
        color: as `#rrggbb`.
        line: matplotlib's line style.
        marker: matplotlib's marker.
    """

    color: str
    line: LineStyle
    marker: str


def looks(variants: pd.DataFrame) -> dict[str, Look]:
    """Variant -> its look: colour by bits (by family where all have the same bits), line by mode, marker by family.

    Where that leaves two variants alike (policies with widths of their own), each has a colour of its own.

    Args:
        variants: one row per variant, float network excepted.
    """
    variants = variants.drop_duplicates("variant")
    families = _numbered(family_keys(variants))
    bits = _numbered(sorted(variants["bits"], reverse=True))
    rows = list(zip(variants["variant"], variants["bits"], variants["mode"], family_keys(variants), strict=True))
    by_bits = len(bits) > 1
    colors = spread_colors(len(bits if by_bits else families))
    styles = {
        name: Look(
            colors[bits[width] if by_bits else families[family]], LINES.get(mode, "-"), MARKERS[families[family] % len(MARKERS)]
        )
        for name, width, mode, family in rows
    }
    if len(set(map(repr, styles.values()))) < len(styles):
        colors = spread_colors(len(rows))
        styles = {name: Look(colors[number], look.line, look.marker) for number, (name, look) in enumerate(styles.items())}
    return styles


def _numbered(values: Iterable[Value]) -> dict[Value, int]:
    """Distinct values by their order."""
    return {value: number for number, value in enumerate(dict.fromkeys(values))}


def mean_words(frame: pd.DataFrame) -> dict[float, str]:
    """Width -> what a legend says behind it, where all rows of that width have it on average."""
    if "widths" not in frame:
        return {}
    mixed = frame["widths"].str.contains("mean")
    return {float(bits): " on average" for bits, part in mixed.groupby(frame["bits"]) if part.all()}


def spread_colors(count: int) -> list[str]:
    """So many distinct colours; beyond the palette a sequence of even perceptual steps, without its faint end."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    scale = matplotlib.colormaps["viridis"]
    return [matplotlib.colors.to_hex(scale(0.92 * number / (count - 1))) for number in range(count)]


def zoom_limits(curves: Mapping[str, pd.Series], reference: pd.Series) -> tuple[float, float] | None:
    """Limits of an axis for the curves that end near the float network; None where one axis shows all of them well.

    Early epochs may leave such an axis at its lower edge: it is made for the later half.

    Args:
        curves: Prec@1 by position, one per variant.
        reference: of the float network.
    """
    ends = {name: curve.iloc[-1] for name, curve in curves.items()}
    top = reference.iloc[-1]
    near = [curves[name] for name, end in ends.items() if end >= top - CLOSE_POINTS]
    far = [end for end in ends.values() if top - end > SPREAD_POINTS]
    if not near or not far:
        return None
    later = pd.concat([curve.iloc[len(curve) // 2 :] for curve in [reference, *near]])
    highest = max(curve.max() for curve in [reference, *near])  # whenever that was: the best is never cut off
    return padded(later.min(), highest, least=1.0)


def padded(low: float, high: float, *, least: float) -> tuple[float, float]:
    """Limits with a margin, at least `least` points apart; the whole scale where most of it is used."""
    if high - low > 50:
        return 0.0, 101.0
    middle, half = (low + high) / 2, max(high - low, least) / 2 * 1.12
    return max(-1.0, middle - half), min(101.0, middle + half)


def percent_axis(axes: Axes, limits: tuple[float, float] | None, label: str = "Prec@1 (percent)") -> None:
    """Label and bound the y axis."""
    axes.set_ylabel(label)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def title(records: pd.DataFrame, what: str) -> str:
    """`what`, then data, network, split and number of images."""
    subjects = [f"{row.data}, {row.model}" for row in records[["data", "model"]].drop_duplicates().itertuples()]
    subject = "; ".join(subjects[:3]) + (" and others" if len(subjects) > 3 else "")
    planned = records.assign(n=planned_images(records))[["n", "split"]].drop_duplicates()
    sizes = ", ".join(f"n = {row.n} {row.split} images" for row in planned.itertuples())
    return f"{what}\n{subject}, {sizes}"


def save(figure: Figure, stem: Path, kinds: Sequence[str] = KINDS, *, titled: bool = True) -> list[Path]:
    """Write `<stem>.png` and `<stem>.svg`, or those of `kinds`, which may have `pdf`; the same numbers give the same bytes.

    Args:
        figure: to write.
        stem: path without an ending.
        kinds: of files.
        titled: with its heading; False for a paper, whose caption says it.
    """
    formats: dict[str, dict[str, Any]] = {
        "pdf": {"metadata": {"CreationDate": None}},
        "png": {"dpi": PNG_DPI},
        "svg": {"metadata": {"Date": None}},
    }
    paths = []
    if not titled:
        figure.suptitle("")
    with matplotlib.rc_context(RC):
        paper = _laid_out(figure)
        for kind in kinds:
            buffer = io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(buffer, format=kind, bbox_inches=paper, facecolor="white", **formats[kind])
            path = stem.with_suffix(f".{kind}")
            write_bytes_atomic(path, with_titles(buffer.getvalue()) if kind == "svg" else buffer.getvalue())
            paths.append(path)
    return paths


def _laid_out(figure: Figure) -> Bbox:
    """Lay a figure out, once for all kinds of files, as its PNG has it; returns the part of the paper that is written, inches.

    `savefig` does it for each kind, with all texts measured anew, which takes longer than to draw.
    """
    figure.dpi = PNG_DPI
    FigureCanvasAgg(figure)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(MARGIN)
