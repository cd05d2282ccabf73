"""The index of all results: what it lists is what stands in the folders, whatever their names and files hold."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qexp.reporting import index
from qexp.reporting.index import COLUMNS, LARGEST_BYTES, write_index
from qexp.reporting.indexed import read_experiment
from qexp.reporting.report import write_report

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published"
IMAGES = np.arange(2000)
RIGHT = {"fp32": IMAGES < 1800, "W8 int": (IMAGES > 3) & (IMAGES < 1803), "W4 int": IMAGES < 1700}
BAD = '"><script>alert(1)</script><img src=x onerror=alert(1)> \' onmouseover=alert(1) x="'
RECORD = {"training": "t", "variant": "W8 int", "prec1": "90.5", "n": "1000", "model": "net", "data": "set", "bits": "8"}


class Page(HTMLParser):
    """Elements with their attributes, the cells of each row of each table, and all text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.rows, self.text, self._in = [], {}, "", ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._in = dict(attrs)["id"]
            self.rows[self._in] = []
        elif tag == "tr":
            self.rows[self._in].append([])
        elif tag in ("td", "th"):
            self.rows[self._in][-1].append("")

    def handle_endtag(self, tag):
        self._in = "" if tag == "table" else self._in

    def handle_data(self, data):
        self.text += data
        if self._in and self.rows[self._in] and self.rows[self._in][-1]:
            self.rows[self._in][-1][-1] += data

    def table(self, name):
        """The cells, white space as a browser shows it."""
        return [[" ".join(cell.split()) for cell in row] for row in self.rows[name][1:]]

    def named(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def put(folder, *records, page=None):
    """An experiment of these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    if page is not None:
        (folder / "report.html").write_text(page, encoding="utf-8")


def test_a_report_writes_it_with_the_numbers_of_the_table(predicted, write, tmp_path):
    report = write_report("exp", runs_dir=write(predicted(RIGHT, folder=tmp_path / "runs")), results_dir=tmp_path, figures=False)
    assert report.places == (f"page: {tmp_path}/exp/report.html", f"index: {tmp_path}/index.html")
    page = Page(tmp_path / "index.html")
    with open(tmp_path / "exp" / "table.csv", newline="", encoding="utf-8") as handle:
        table = {row["variant"]: row for row in csv.DictReader(handle)}
    place = {column.name: number for number, column in enumerate(COLUMNS, start=1)}
    assert [row[0] for row in page.table("rows")] == ["exp"] * 3
    for row in page.table("rows"):
        of_table = table[row[place["variant"]]]
        assert float(row[place["prec1"]]) == pytest.approx(float(of_table["prec1"]), abs=0.005)
        assert row[place["n"]] == of_table["n"] == "2000" and row[place["network"]] == "resnet20"
        assert float(row[place["size_mib"]]) == pytest.approx(float(of_table["size_bytes"]) / 2**20, abs=0.0005)
        if row[place["variant"]] != "fp32":
            assert float(row[place["delta"]]) == pytest.approx(float(of_table["delta_prec1"]), abs=0.005)
            low, high = map(float, row[place["interval"]].split(" to "))
            assert (low, high) == pytest.approx((float(of_table["ci_low"]), float(of_table["ci_high"])), abs=0.005)
    ((name, headline, network, data, n, rows, best, worst, alarms, _),) = page.table("experiments")
    assert (name, network, n, rows, best, worst, alarms) == ("exp", "resnet20", "2000", "3", "-0.05", "-5.00", "")
    assert data == "mnist5k d" and headline.startswith("90.00 % Prec@1 of fp32 (95 %: ") and "W8 int smallest copy" in headline
    assert {attrs["href"] for attrs in page.named("a")} == {"./exp/report.html"}


def test_headlines_of_pages_as_they_stand_there():
    """Read with another reader, of every published page."""
    pages = sorted(PUBLISHED.glob("*/report.html"))
    assert len(pages) > 10
    for path in pages:
        listed = read_experiment(path.parent)
        source = path.read_text(encoding="utf-8")
        values = re.findall(r'<div class="fact"><b>(.*?)</b><span>(.*?)</span>', source)
        assert [fact[:2] for fact in listed.facts] == values and bool(values) != bool(listed.remark)
        told = [row for row in listed.rows if row.low is not None]
        assert all(row.low <= row.delta <= row.high for row in told), "the interval of another difference"


def test_no_name_is_more_than_text(tmp_path):
    bad = {key: BAD for key in (*RECORD, "label", "alarms", "mode", "widths", "split", "data_hash", "size_bytes")}
    lead = f'<div class="fact"><b>{BAD.replace("<", "&lt;")}</b><span>{BAD.replace("<", "&lt;")}</span></div>'
    put(tmp_path / BAD.replace("/", "|"), bad, bad | {"training": "other"}, page=lead)
    put(tmp_path / "javascript:alert(1)", RECORD)
    page = Page(write_index(tmp_path))
    assert len(page.named("script")) == 1 and not page.named("img")
    known = {"href", "id", "class", "scope", "title", "type", "tabindex", "role", "for", "hidden", "placeholder", "autocomplete"}
    assert {key for tag, attrs in page.elements if tag not in ("meta", "html") for key in attrs} <= known
    assert all(attrs["href"].startswith("./") and ":" not in attrs["href"] for attrs in page.named("a"))
    assert BAD in page.text.replace("\n", " ") and "javascript:alert(1)" in page.text
    policy = next(attrs["content"] for attrs in page.named("meta") if "http-equiv" in attrs)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.named("th"))


def test_what_cannot_be_read_is_said_and_the_rest_listed(tmp_path):
    put(tmp_path / "good", RECORD, RECORD | {"variant": "W4 int", "prec1": "nan", "n": "", "bits": "four"})
    put(tmp_path / "study", {"what": "x", "n": "3"})
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "table.csv").write_bytes(b"training,variant\n\xff\xfe\x00")
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "jobs.csv").write_text("job\n0\n")
    (tmp_path / "nothing" / "table.csv").mkdir(parents=True)
    (tmp_path / "loose.csv").write_text("a")
    page = Page(write_index(tmp_path))
    headlines = {row[0]: row[1] for row in page.table("experiments")}
    assert list(headlines) == ["binary", "good", "running", "study"]
    assert headlines["binary"].startswith("table.csv cannot be read") and headlines["running"] == "nothing is evaluated yet"
    assert headlines["study"] == "a table of its own kind, with 1 rows"
    assert [row[0:2] for row in page.table("rows")] == [["good", "W8 int"], ["good", "W4 int"]]
    assert page.table("rows")[1][4:7] == ["", "four", ""] and page.table("rows")[1][7] == ""


def test_its_size_is_bounded_and_says_what_is_left_out(tmp_path):
    for number in range(50):
        rows = [RECORD | {"variant": f"W8 int {'per_channel ' * 8}{row}", "alarms": "x" * 500} for row in range(60)]
        put(tmp_path / f"experiment_{number:02}", *rows, page=f'<div class="fact"><b>{"9" * 999}</b><span>x</span></div>')
    path = write_index(tmp_path)
    page = Page(path)
    listed = [row[0] for row in page.table("rows")]
    assert path.stat().st_size <= LARGEST_BYTES and len(page.table("experiments")) == 50
    assert len({listed.count(name) for name in listed}) == 1 and len(set(listed)) == 50
    assert f"{len(listed)} of 3000 rows" in page.text


def test_what_one_line_cannot_hold_stands_below_it(tmp_path):
    """An experiment of several data sets, with alarms."""
    rows = [RECORD | {"data": name, "alarms": f"{name} is odd"} for name in ("one", "two")]
    put(tmp_path / "exp", *rows, RECORD)
    page = Page(write_index(tmp_path))
    assert len(page.named("details")) == 1 and "data: one, two, set" in page.text
    assert "one is odd" in page.text and "network: " not in page.text, "of one network there is no more to say"


def test_two_reports_at_once_are_both_listed(tmp_path, monkeypatch):
    """While the first page is made another report is written, whose own index comes before it."""
    put(tmp_path / "first", RECORD)
    page_text, calls = index.page_text, []

    def other_report(experiments):
        if not calls:
            calls.append(1)
            put(tmp_path / "second", RECORD)
            write_index(tmp_path)
        return page_text(experiments)

    monkeypatch.setattr(index, "page_text", other_report)
    page = Page(write_index(tmp_path))
    assert [row[0] for row in page.table("experiments")] == ["first", "second"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "index.html", "second"]


def test_a_report_stands_without_it(predicted, write, tmp_path):
    (tmp_path / "results" / "index.html").mkdir(parents=True)
    report = write_report("exp", runs_dir=write(predicted(RIGHT)), results_dir=tmp_path / "results", figures=False)
    assert report.places[0].startswith("page: ") and report.places[1].startswith("no index: ")
    assert (report.folder / "report.html").is_file()
