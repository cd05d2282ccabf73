"""SVG files as elements of the page. Some lie in a folder that others may write to, so only what draws is taken over.

The file is read as XML and written anew from the elements and attributes that are allowed. Rejected: to look for `<script>` in
the text, as a browser reads comments and instructions of XML inside HTML in another way than a parser of XML does.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup

LEAST, MOST = 0.62, 1.2  # of a figure's own width
SPREAD_PT = 600.0  # from which own width on a figure takes the page's, and not a column of two
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_SHAPES = "path use rect circle ellipse line polyline polygon text tspan image"
_DRAWS = {f"{_SVG}{name}" for name in f"svg g defs style clipPath mask pattern title {_SHAPES}".split()}
_FETCHES = re.compile(r"@|\\|url\((?!#)|expression", re.IGNORECASE)  # in CSS


def inline(path: Path, prefix: str, label: str) -> Markup:
    """An SVG file as an element of the page: no prologue, no white ground, and names of its own, as two figures use the same.

    Its letters stay near the size of the text: a wide one scrolls on a phone rather than shrinking to nothing.

    Args:
        path: the file.
        prefix: put before each name.
        label: what it shows, for who does not see it.

    Returns:
        The element, or a sentence where the file is no SVG.
    """
    ElementTree.register_namespace("", _SVG.strip("{}"))
    ElementTree.register_namespace("xlink", _XLINK.strip("{}"))
    try:
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text[text.index("<svg") :])
    except (ValueError, ElementTree.ParseError):  # no such text, or none of UTF-8, or broken
        return Markup('<p class="soft">{} is no SVG file.</p>').format(path.name)
    _clean(root)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"(<path [^>]*)fill: #ffffff", r"\1fill: none", text)  # letters may be white: those of a heat map are
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    width = re.search(r'<svg [^>]*?width="([\d.]+)pt"', text)
    limits = f' style="min-width: {LEAST * float(width[1]):.0f}pt; max-width: {MOST * float(width[1]):.0f}pt"' if width else ""
    # Cells of a heat map are one image, whose colours stand beside a scale of them: they are the same on a dark page.
    classes = {"spread": width and float(width[1]) > SPREAD_PT, "colored": root.find(f".//{_SVG}image") is not None}
    kinds = " ".join(name for name, holds in classes.items() if holds)
    start = Markup('<svg role="img" aria-label="{}"').format(label) + Markup(f' class="{kinds}"' if kinds else "")
    return Markup(re.sub(r"<svg ", lambda _: f"{start}{limits} ", text, count=1))


def _clean(element: ElementTree.Element) -> None:
    """Drop what does more than draw: scripts, handlers, other documents, whatever is fetched."""
    for name, value in list(element.attrib.items()):
        is_link = name in ("href", f"{_XLINK}href")
        fetches = not value.startswith(("#", "data:image/png;base64,")) if is_link else _FETCHES.search(value) is not None
        if fetches or name.lower().startswith("on") or (name.startswith("{") and not is_link):
            del element.attrib[name]
    for child in list(element):
        if child.tag in _DRAWS and not (child.tag == f"{_SVG}style" and _FETCHES.search("".join(child.itertext()))):
            _clean(child)
        else:
            element.remove(child)
