"""Typed tables and their renderers."""

import pytest

from qexp.base.table import FORMS, RENDERERS, Column, Table, html_table, latex_table, lines, markdown_table

COLUMNS = (
    Column(name="variant", title="variant", kind="text"),
    Column(name="prec1", title="Prec@1 %", kind="percent", empty="-"),
    Column(name="verdict", title="vs", kind="text", marks={"best": "good"}, optional=True),
)
ROWS = [{"variant": "W4_int <a|b>", "prec1": 97.126, "verdict": "best"}, {"variant": "half", "prec1": None, "verdict": ""}]


@pytest.fixture
def table():
    return Table.of(COLUMNS, ROWS)


def test_a_terminal_has_columns_of_one_width(table):
    assert lines(table, rule=True) == [
        "variant       Prec@1 %  vs",
        "------------  --------  ----",
        "W4_int <a|b>     97.13  best",
        "half                 -",
    ]
    assert lines(table, titles=False, indent="  ")[1] == "  half              -"


def test_markdown_and_latex_and_html_escape_what_they_would_obey(table):
    assert markdown_table(table).splitlines()[1:3] == ["| :-- | --: | :-- |", "| W4_int &lt;a\\|b> | 97.13 | best |"]
    assert latex_table(table).splitlines() == [
        r"\begin{tabular}{lrl}",
        r"\toprule",
        r"variant & Prec@1 \% & vs \\",
        r"\midrule",
        r"W4\_int \textless{}a\textbar{}b\textgreater{} & 97.13 & best \\",
        r"half & - &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    page = html_table(table, ["copy", "a b"])
    assert '<tr class="copy"><td class="left">W4_int &lt;a|b&gt;</td><td>97.13</td>' in page
    assert '<td class="left"><span class="mark good">best</span></td></tr>' in page


@pytest.mark.parametrize(("name", "row"), [("[6pt] ours", "{}[6pt] ours"), ("*ours", "{}*ours"), ("ours [1]", "ours [1]")])
def test_a_row_of_latex_is_no_argument_of_what_ends_the_row_before_it(name, row):
    r"""`\\` takes `*` and `[6pt]` even from the next line, and `\midrule` the latter."""
    (column, *_) = COLUMNS
    assert latex_table(Table((column,), ((name,), (name,)))).splitlines()[4:6] == [rf"{row} \\", rf"{row} \\"]


@pytest.mark.parametrize("name", RENDERERS)
def test_every_renderer_shows_titles_and_cells_and_no_rows_at_all(name, table):
    text = RENDERERS[name](table)
    assert all(cell in text for cell in ("variant", "Prec@1", "97.13", "half"))
    assert "variant" in RENDERERS[name](Table.of(COLUMNS[:2], []))


def test_an_optional_column_without_anything_is_left_out():
    assert Table.of(COLUMNS, ROWS[1:]).titles == ["variant", "Prec@1 %"]
    assert Table.of(COLUMNS, ROWS).without("prec1").cells == [["W4_int <a|b>", "best"], ["half", ""]]


def test_what_is_no_number_is_shown_and_what_is_none_is_empty():
    assert COLUMNS[1].text(float("nan")) == "nan" and COLUMNS[1].text(None) == "-"


@pytest.mark.parametrize("kind", FORMS)
def test_every_kind_has_a_form_and_a_side(kind):
    column = Column(name="a", title="a", kind=kind)
    assert column.text("x" if kind == "text" else 3) and column.side == ("left" if kind == "text" else "right")
