"""The index of all results in a real browser: sorting, filtering, and what is said of rows that do not compare."""

import csv
import shutil
from pathlib import Path

import pytest

from qexp.reporting.index import write_index

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
NAMES = ("cifar10-jpeg", "mnist5k", "qat-cifar10-jpeg")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of three published experiments, and the rows of their tables."""
    folder, rows = tmp_path_factory.mktemp("results"), []
    for name in NAMES:
        shutil.copytree(PUBLISHED / name, folder / name, ignore=shutil.ignore_patterns("predictions*", "figures"))
        with open(folder / name / "table.csv", newline="", encoding="utf-8") as handle:
            rows += [row | {"experiment": name} for row in csv.DictReader(handle)]
    return write_index(folder), rows


@pytest.fixture
def page(shots, written):
    """It in a browser, from its file; whatever was written to the console as an error fails the test."""
    with shots.open_page(1280, 1000) as (page, errors):
        page.goto(written[0].as_uri())
        yield page
    assert errors == []


def column(page, title):
    """The texts of a column."""
    titles = page.locator("#rows thead th").all_inner_texts()
    return page.locator(f"#rows tbody tr > :nth-child({titles.index(title) + 1})").all_inner_texts()


def test_titles_sort_and_come_back(page, written):
    rows = written[1]
    assert column(page, "experiment") == [row["experiment"] for row in rows] and not page.locator("#mixed").inner_text()
    before = column(page, "variant")
    title = page.locator("#rows thead button", has_text="Prec@1")
    title.click()
    rounded = [f"{float(row['prec1']):.2f}" for row in sorted(rows, key=lambda row: float(row["prec1"]))]
    assert column(page, "Prec@1") == rounded
    assert page.locator("#rows th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert "of 3 different data or n: their order is no ranking" in page.locator("#mixed").inner_text()
    title.click()
    assert column(page, "Prec@1") == rounded[::-1]
    title.click()
    assert column(page, "variant") == before and page.locator("#rows th[aria-sort]").count() == 0
    page.locator("#rows thead button", has_text="delta").click()
    deltas = [text for text in column(page, "delta") if text]
    assert [float(text) for text in deltas] == sorted(map(float, deltas)), "what has no delta stands below"
    assert column(page, "delta")[: len(deltas)] == deltas and len(deltas) < len(rows)


def test_words_filter(page, written):
    page.locator("#filter").fill("MNIST5K w4")
    (row,) = [row for row in written[1] if row["experiment"] == "mnist5k" and row["variant"] == "W4 int"]
    assert column(page, "experiment") == ["mnist5k"] and column(page, "variant") == ["W4 int"]
    assert column(page, "Prec@1") == [f"{float(row['prec1']):.2f}"]
    assert column(page, "delta") == [f"{float(row['delta_prec1']):+.2f}"]
    page.locator("#rows thead button", has_text="Prec@1").click()
    assert page.locator("#status").inner_text() == f"1 of {len(written[1])} rows, by Prec@1."
    assert page.locator("#mixed").inner_text() == "", "one data set and one n"
    page.locator("#filter").fill("no such word")
    assert column(page, "experiment") == []
    page.locator("#filter").fill("")
    assert len(column(page, "experiment")) == len(written[1])


def test_an_experiment_is_a_line_that_opens(page):
    line = page.locator("#experiments tbody tr").first
    assert page.locator("#rows").evaluate("table => table.parentElement.clientHeight") <= 0.8 * 1000, "it scrolls within the page"
    closed, interval = line.bounding_box()["height"], line.locator("small").first
    assert not interval.is_visible() and "95 %: " in interval.text_content()
    line.locator("summary").click()
    assert interval.is_visible() and line.bounding_box()["height"] > closed
    page.locator("#find").fill("MNIST5K resnet20")
    assert page.locator("#experiments tbody th").all_inner_texts() == ["mnist5k"]
    assert page.locator("#listed").inner_text() == f"1 of {len(NAMES)} experiments"
    page.locator("#find").fill("")
    page.locator("#experiments thead button", has_text="best").click()
    best = [float(text) for text in page.locator("#experiments tbody td:nth-child(7)").all_inner_texts()]
    assert best == sorted(best) and len(best) == len(NAMES)


def test_days_of_one_year_are_in_order(page):
    """A date begins with a number that all of them share."""
    dates, title = page.locator("#experiments tbody td:last-child"), page.locator("#experiments thead button", has_text="date")
    assert dates.all_inner_texts() == ["2026-11-22", "2026-11-30", "2026-11-22"], "by name"
    title.click()
    assert dates.all_inner_texts() == ["2026-11-22", "2026-11-22", "2026-11-30"]
    title.click()
    assert dates.all_inner_texts() == ["2026-11-30", "2026-11-22", "2026-11-22"]


@pytest.mark.parametrize("width", [390, 1280])
def test_only_tables_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("link", name="cifar10-jpeg", exact=True).first.click()
    assert page.url.endswith("/cifar10-jpeg/report.html")
