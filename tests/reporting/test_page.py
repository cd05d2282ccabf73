import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import qexp
import qexp.reporting.page as page_module
from qexp.base.errors import UserError
from qexp.reporting.figures.accuracy import prec1_by_bits, prec1_by_epoch
from qexp.reporting.figures.cost import pareto, prec1_by_size
from qexp.reporting.figures.layers import kl_map
from qexp.reporting.figures.style import save
from qexp.reporting.figures.variants import prec1_by_variant
from qexp.reporting.frames.summary import summarize
from qexp.reporting.inline_svg import inline
from qexp.reporting.report import write_report

IMAGES = np.arange(2000)
RIGHT = {"fp32": IMAGES < 1800, "W8 int": (IMAGES > 3) & (IMAGES < 1803), "W4 int": IMAGES < 1700, "W2 int": IMAGES < 300}
VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """What a browser would fetch, the names of elements, and whether all are closed."""

    def __init__(self):
        super().__init__()
        self.fetched, self.ids, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.fetched += [
            values[key] for key in ("src", "href", "xlink:href") if key in values and not values[key].startswith("#")
        ]
        self.ids += [values["id"]] if "id" in values else []
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def runs_dir(tmp_path, predicted, write):
    rows = [row for epoch in (1, 2) for row in predicted(RIGHT, folder=tmp_path / "runs", epoch=epoch)]
    next(row for row in rows if row.get("variant") == "W8 int" and row["epoch"] == 2)["alarms"] = ["logits <are> not & finite"]
    plan = '[{"kind":"conv","role":"weight","bits":8,"num_elements":900,"reason":""},'
    plan += '{"kind":"norm","role":"weight","bits":null,"num_elements":100,"reason":"BN statistic"}]'
    for row in rows:
        if row["kind"] == "run" and row["name"] == "W8 int":
            row["artifacts"] = {"plan.json": plan}
    return write(rows)


def test_the_page_stands_alone_and_says_what_is_asked(runs_dir, tmp_path):
    report = write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results")
    path = report.folder / "report.html"
    assert path in report.tables
    source = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(source)
    text = " ".join(" ".join(page.text).split())
    assert page.fetched == [] and page.open == [] and len(page.ids) == len(set(page.ids))
    assert "@import" not in source and "url(http" not in source
    for reference in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', source):
        assert "".join(reference) in page.ids
    for words in (
        "What does quantizing resnet20 on mnist5k cost?", "shown to differ from fp32", "95 % CI", "worse", "lr 0.1",
        "Holm-adjusted p", "not significant",
        "n = 2000 images of split test", "Prec@1 against stored size", "W8 int: logits <are> not & finite (in 1 of 2 epochs",
        "1 (BN statistic)", "1 conv weight: 90.0 % of all elements, statistics too", "python -m qexp.train bits=4,8 -m",
        "smallest copy shown to lose less", "torch 2.13.0",
    ):  # fmt: skip
        assert words in text, words
    assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source
    write_report("exp", runs_dir=runs_dir, results_dir=tmp_path / "results")
    assert path.read_text(encoding="utf-8") == source


def test_a_page_without_predictions_says_so(predicted, write, tmp_path):
    report = write_report("exp", runs_dir=write(predicted(RIGHT)), results_dir=tmp_path / "results")
    text = (report.folder / "report.html").read_text(encoding="utf-8")
    assert "No statistics: no predictions were kept." in text and "No predictions were kept, so that" in text


def test_what_loses_least_leads_where_nothing_is_shown_to_lose_little(predicted, write, tmp_path):
    right = {name: RIGHT[name] for name in ("fp32", "W4 int", "W2 int")}
    report = write_report("exp", runs_dir=write(predicted(right, folder=tmp_path / "runs")), results_dir=tmp_path / "results")
    page = Page()
    page.feed((report.folder / "report.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert "-5.00 points W4 int comes out best of 2 copies; none is shown to lose less than half a point 95 %: -" in text


def test_load_is_tidy(runs_dir):
    frame = qexp.load("exp", runs_dir)
    assert len(frame) == 8 and not frame.duplicated(["training", "variant", "epoch"]).any()
    assert frame["is_last"].sum() == 4 and set(frame["param.train.lr"]) == {0.1}
    last = frame[frame["is_last"]].set_index("variant")
    assert last.loc["W4 int", "ci_high"] < -3 and last.loc["W4 int", "vs_best"] == "worse"
    assert frame[~frame["is_last"]]["p_holm"].isna().all()
    assert frame.loc[frame["variant"] == "W4 int", "bits"].tolist() == [4, 4]
    for draw in (prec1_by_epoch, prec1_by_bits, prec1_by_size):
        assert type(draw(frame)).__name__ == "Figure"
    assert prec1_by_variant(frame) is None
    with pytest.raises(UserError, match="exp"):
        qexp.load("other", runs_dir)


def test_what_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = qexp.lode


def test_the_pareto_front(runs_dir):
    table = summarize(qexp.load("exp", runs_dir))
    assert table.loc[pareto(table), "variant"].tolist() == ["W2 int", "W4 int", "W8 int", "fp32"]
    (near, whole) = prec1_by_size(qexp.load("exp", runs_dir)).axes
    low, high = near.get_ylim()
    assert low < table["prec1_low"][table["prec1"] > 80].min() and high > table["prec1_high"].max()


def test_repeated_seeds_lead(tmp_path, predicted, write):
    """Three seeds of which the best is no result: tile, finding, screen and page begin with the mean."""
    parts = []
    for seed, right in enumerate((1800, 1780, 1910)):
        copies = {"fp32": IMAGES < right, "W8 int": IMAGES < right, "W4 int": IMAGES < right - 100}
        parts.append(predicted(copies, training=f"{seed}{seed}" * 8, folder=tmp_path / "runs", seed=seed))
    report = write_report("exp", runs_dir=write(*parts), results_dir=tmp_path / "results")
    source = (report.folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'class="fact"><b>(.*?)</b>', source) == ["91.50 +- 3.50 %", "W8 int", "4.0 times"]
    assert "mean +- sd over 3 seeds" in source and "+0.00 +- 0.00 points, mean +- sd over 3 seeds, shown of each" in source
    first = source.split(">Which differences are real</h2>")[1].split("</li>")[0]
    assert "Over 3 seeds, mean +- sd: fp32 91.50 +- 3.50 %, W8 int 91.50 +- 3.50 % (+0.00 +- 0.00)" in first
    table = source.split(">Repeated seeds</h2>")[1].split("</table>")[0]
    assert "91.50 +- 3.50" in table and "86.50 +- 3.50" in table
    assert report.table.startswith("mean +- sd over seeds") and report.table.index("+- 3.50") < report.table.index("95.50")


def test_colours_of_a_heat_map_are_the_same_on_a_dark_page(tmp_path, runs_dir):
    svg = inline(save(kl_map(pd.DataFrame([[1e-6, 1.0]], ["conv1"], [2, 8]), "KL"), tmp_path / "map")[-1], "f0-", "KL")
    curves = inline(save(prec1_by_bits(qexp.load("exp", runs_dir)), tmp_path / "bits")[-1], "f1-", "Prec@1")
    assert 'class="colored"' in svg.split(">")[0] and "colored" not in curves
    style = (Path(page_module.__file__).with_name("page.html.jinja")).read_text(encoding="utf-8")
    assert ".figure svg:not(.colored) { filter: invert(1)" in style


def test_white_letters_stay_when_the_ground_goes(tmp_path):
    values = pd.DataFrame([[1e-6, 1.0]], ["conv1"], [2, 8])
    svg = inline(save(kl_map(values, "KL"), tmp_path / "map")[-1], "f0-", "KL")
    assert re.search(r"<text[^>]*fill: #ffffff[^>]*>1e-06<", svg) and not re.search(r"<path[^>]*fill: #ffffff", svg)
