"""Names and files of somebody else's do nothing in a report: no script in the page, no HTML in Markdown, no formula in CSV."""

import io
import math

import pandas as pd
import pytest

from qexp.base.table import RENDERERS, Column, Table, markdown_text
from qexp.reporting.inline_svg import inline
from qexp.reporting.tables.render import csv_text

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="300pt" {}>'
    '<defs><path id="a" d="M 0"/></defs><use xlink:href="#a" style="fill: #f00000; mask: url(#a)"/><text>kept</text>{}</svg>'
)
BAD = {
    "script": "<script>alert(1)</script>",
    "within": "<g><g><script xlink:href='x'/></g></g>",
    "html": '<foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><img src="x"/></body></foreignObject>',
    "unprefixed": '<s:script xmlns:s="http://www.w3.org/2000/svg">alert(1)</s:script>',
    "handler": '<rect onload="alert(1)" OnClick="alert(1)"/>',
    "link": '<use xlink:href="http://host/alert"/><use href="javascript:alert(1)"/><a href="javascript:alert(1)"><text/></a>',
    "image": '<image href="http://host/alert.png"/><image xlink:href="data:image/svg+xml;base64,alert"/>',
    "style": "<style>@import 'http://host/alert.css';</style><rect style=\"fill: url(http://host/alert)\"/>",
    "animated": '<set attributeName="href" to="javascript:alert(1)"/><animate attributeName="onload" values="alert(1)"/>',
    "comment": "<!--><script>alert(1)</script>-->",
    "instruction": "<?x ><script>alert(1)</script>?>",
    "cdata": "<style><![CDATA[</style><script>1</script>]]></style>",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_figure_only_draws(tmp_path, kind):
    path = tmp_path / "a.svg"
    path.write_text("<?xml version='1.0'?>\n" + SVG.format('onload="alert(1)"', BAD[kind]))
    text = inline(path, "f0-", "a figure")
    assert "alert" not in text and "<script" not in text and "http://host" not in text
    for kept in (
        'id="f0-a"',
        'xlink:href="#f0-a"',
        "url(#f0-a)",
        "fill: #f00000",
        ">kept</text>",
        'role="img"',
        "width: 186pt",
    ):
        assert kept in text


@pytest.mark.parametrize("content", [b"", b"no svg", b"<svg><g>", b"<svg>\xff</svg>"])
def test_a_broken_figure_is_named(tmp_path, content):
    path = tmp_path / "<b>.svg"
    path.write_bytes(content)
    assert inline(path, "f0-", "a figure") == '<p class="soft">&lt;b&gt;.svg is no SVG file.</p>'


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "</td>", "<!-- ", "\\<img src=x onerror=alert(1)>", "`<b>`"])
def test_markdown_holds_no_html(name):
    table = Table((Column(name="name", title=name, kind="text"),), ((name,),))
    for text in (RENDERERS["markdown"](table), markdown_text([f"# {name}", f"`{name}`"])):
        assert not any(f"<{char}" in text for char in "siIb/!") and text.count("&lt;") >= 2


def test_csv_holds_no_formula_and_the_same_bytes_else():
    names = [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "@SUM(A1)",
        "-2+3",
        "\t=1",
        "=",
        "-",
        "-0.5",
        "+1e-5",
        "-inf",
        "+7.9 dB or more",
        "a=b",
    ]
    frame = pd.DataFrame({"name": names, "=cmd()": names, "number": range(len(names))})
    read = pd.read_csv(io.StringIO(csv_text(frame)), dtype=str)
    expected = [f"'{name}" for name in names[:5]] + names[5:]
    assert list(read["name"]) == list(read["'=cmd()"]) == expected
    plain = pd.DataFrame({"name": ['a "b", c', None, "it's"], "delta": [-0.5, 1e-9, None], "is": [True, False, None]})
    numbers = {"n": [3, -2, 1 << 60], "same": [True, False, True], "share": [-0.0, math.inf, 1 / 3], "mixed": [1, "1", 1.0]}
    plain = plain.assign(**numbers, text=["", "a", "b\n"])
    assert csv_text(plain) == plain.to_csv(index=False, float_format="%.10g", na_rep="", lineterminator="\n")
