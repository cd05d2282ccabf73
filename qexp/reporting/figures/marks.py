"""What a point of a figure is, told where the pointer is: `<title>` elements of SVG, which browsers show as they are.

matplotlib writes an artist's `gid` as the `id` of its group. `tell` puts there what belongs to the points; `with_titles` makes
titles of it, and `data-series`, by which the page highlights what belongs together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from xml.etree import ElementTree

from matplotlib.artist import Artist
from matplotlib.axes import Axes

Told = Sequence[tuple[str, str]]  # what a point belongs to, and what it is
_PREFIX = "qexp:"
_SVG = "{http://www.w3.org/2000/svg}"
_NAMESPACES = {
    "": _SVG.strip("{}"),
    "xlink": "http://www.w3.org/1999/xlink",
    "cc": "http://creativecommons.org/ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
}


def tell(artist: Artist, series: str | Sequence[str], texts: Sequence[str] = ()) -> None:
    """Say what an artist's points are.

    Args:
        artist: a collection, or a line without markers.
        series: what it belongs to; of points that belong to different ones, that of each.
        texts: of each point; none for what is no point, a curve or a band.
    """
    artist.set_gid(_PREFIX + json.dumps({"series": series if isinstance(series, str) else [*series], "texts": [*texts]}))


def points(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, marker: str, size: float, told: Told) -> None:
    """Draw points that say what they are, those without a number left out.

    A scatter with more than one width: of markers that are alike in all, and of those of a line, matplotlib leaves out what lies
    beyond the paper.

    Args:
        axes: to draw on.
        x: abscissae.
        y: ordinates.
        color: of face and edge.
        marker: matplotlib's.
        size: points.
        told: what each belongs to and is.
    """
    known = [number for number, values in enumerate(zip(x, y, strict=True)) if all(map(isfinite, values))]
    drawn = axes.scatter(
        [x[one] for one in known],
        [y[one] for one in known],
        s=size**2,
        c=color,
        marker=marker,
        linewidths=[1.0, 1.0],
        zorder=2.1,
    )
    tell(drawn, [told[one][0] for one in known], [told[one][1] for one in known])


def percent_text(prec1: float, low: float | None = None, high: float | None = None) -> str:
    """`Prec@1 91.35`, with `, 95 % 90.78 to 91.88` behind it where there is an interval, which has two ends."""
    return f"Prec@1 {prec1:.2f}" + ("" if low is None or high is None or low == high else f", 95 % {low:.2f} to {high:.2f}")


def with_titles(svg: bytes) -> bytes:
    """An SVG file of matplotlib with a title in each point that `tell` described.

    Args:
        svg: as matplotlib wrote it.

    Raises:
        ValueError: an artist was drawn with another number of points than were described.
    """
    for prefix, uri in _NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.fromstring(svg)
    for group in [group for group in root.iter(f"{_SVG}g") if group.get("id", "").startswith(_PREFIX)]:
        told = json.loads(group.attrib.pop("id").removeprefix(_PREFIX))
        points = _points(group)
        series, texts = told["series"], told["texts"]
        if len(texts) not in (0, len(points)) or (not isinstance(series, str) and len(series) != len(points)):
            raise ValueError(f"{len(points)} points were drawn of {series}, and {len(texts)} described: {texts}")
        if isinstance(series, str):
            group.set("data-series", series)
        else:
            for point, name in zip(points, series, strict=True):
                point.set("data-series", name)
        for point, text in zip(points, texts, strict=bool(texts)):
            ElementTree.SubElement(point, f"{_SVG}title").text = text
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _points(group: ElementTree.Element) -> list[ElementTree.Element]:
    """What draws a group's points, in their order: each use of a marker, or a path of its own."""
    drawn = []
    for child in group:
        if child.tag in (f"{_SVG}use", f"{_SVG}path"):
            drawn.append(child)
        elif child.tag == f"{_SVG}g":
            drawn += _points(child)
    return drawn
