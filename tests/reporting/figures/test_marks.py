"""What points of a figure tell: a title in each, wherever it lies."""

import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from qexp.reporting.figures.marks import points, tell, with_titles
from qexp.reporting.figures.style import PAPER, PNG_DPI, drawing, save


def titles(path):
    return re.findall(r'data-series="([^"]*)"[^>]*><title>([^<]*)</title>', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("y", [[1.0, 2.0, 3.0], [1.0, 900.0, 2.0], [-900.0, 1.0, 900.0], [5.0]])
def test_points_beyond_the_axes_and_the_paper_have_their_titles(y, tmp_path):
    with drawing(4, 3) as figure:
        axes = figure.subplots()
        points(
            axes, list(range(len(y))), y, "#0072B2", "o", 4, [(f"s{at}", f"{at}: {value} & <b>") for at, value in enumerate(y)]
        )
        axes.set_ylim(0, 4)
    *_, svg = save(figure, tmp_path / "figure")
    assert titles(svg) == [(f"s{at}", f"{at}: {value} &amp; &lt;b&gt;") for at, value in enumerate(y)]
    before = svg.read_bytes()
    save(figure, tmp_path / "figure")
    assert svg.read_bytes() == before


def test_all_kinds_of_files_are_laid_out_as_the_png(tmp_path):
    """Labels outside of the axes make room for themselves, in each kind the same."""
    with drawing(4, 3, "a heading") as figure:
        figure.subplots().set_ylabel("a label\nof three\nlines", fontsize=20)
    pdf, png, svg = save(figure, tmp_path / "figure", PAPER)
    width, height = (float(size) / 72 for size in re.findall(r'(?:width|height)="([\d.]+)pt"', svg.read_text())[:2])
    with Image.open(png) as picture:
        assert picture.size == (int(width * PNG_DPI), int(height * PNG_DPI))
    (box,) = re.findall(rb"/MediaBox \[ ([\d. ]+) \]", pdf.read_bytes())
    assert [float(number) / 72 for number in box.split()] == pytest.approx([0, 0, width, height], abs=1e-3)
    assert figure.axes[0].get_position().x0 > 0.2
    save(figure, tmp_path / "alone", ("svg",))
    assert (tmp_path / "alone.svg").read_bytes() == svg.read_bytes()


def test_what_has_no_number_is_left_out_with_its_title(tmp_path):
    with drawing(4, 3) as figure:
        points(figure.subplots(), [0, 1, 2], [1.0, float("nan"), 2.0], "#000000", "s", 4, [("a", "A"), ("b", "B"), ("c", "C")])
    assert titles(save(figure, tmp_path / "figure")[-1]) == [("a", "A"), ("c", "C")]


def test_a_curve_belongs_to_something_and_tells_nothing(tmp_path):
    with drawing(4, 3) as figure:
        (line,) = figure.subplots().plot([0, 1], [1, 2])
        tell(line, 'W4 "int"')
    root = ElementTree.parse(save(figure, tmp_path / "figure")[-1]).getroot()
    (curve,) = (one for one in root.iter() if one.get("data-series"))
    assert curve.get("data-series") == 'W4 "int"' and not [one for one in curve.iter() if one.tag.endswith("title")]
    assert not any((one.get("id") or "").startswith("qexp:") for one in root.iter())


def test_another_number_of_points_is_no_figure():
    svg = """<svg xmlns="http://www.w3.org/2000/svg"><g id='qexp:{"series": ["a", "b"], "texts": ["A", "B"]}'><use/></g></svg>"""
    with pytest.raises(ValueError, match="1 points were drawn of"):
        with_titles(svg.encode())


def test_a_typed_label_is_drawn_as_it_is(tmp_path):
    """Between dollar signs matplotlib would read mathematics, and refuse what is none."""
    label = r"costs $5 \bad{ and $6"
    with drawing(3, 2, label) as figure:
        figure.subplots().set_ylabel(label)
    *_, svg = save(figure, tmp_path / "figure")
    assert svg.read_text(encoding="utf-8").count(f">{label}<") == 2
