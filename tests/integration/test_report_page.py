"""A report in a real browser: its tables sort, filter and choose columns, its figures tell the numbers of the CSV."""

import csv
import os
from pathlib import Path

import pytest

EPOCHS = 3


@pytest.fixture(scope="module")
def report(process, tiny, tmp_path_factory):
    """The folder of a report over a sweep of twelve copies, figures drawn."""
    folder, before = tmp_path_factory.mktemp("report"), os.getcwd()
    os.chdir(folder)
    try:
        command = (
            *tiny,
            "draw_figures=true",
            f"train.epochs={EPOCHS}",
            "bits=2,3,4,8",
            "quant=linear,affine,symmetric_restricted",
        )
        done = process("qexp.train", *command, "-m")
    finally:
        os.chdir(before)
    assert done.returncode == 0, done.stderr
    return folder / "results" / "digits"


@pytest.fixture
def page(shots, report):
    """Its page in a browser; whatever was written to the console as an error fails the test."""
    with shots.open_page(1280, 1000) as (page, errors):
        page.goto((report / "report.html").as_uri())
        yield page
    assert errors == []


def rows_of(report, file="table.csv"):
    with open(report / file, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def column(page, title):
    """The texts of a column of the large table."""
    titles = page.locator("#table ~ .scroll thead th").all_inner_texts()
    return page.locator(f"#table ~ .scroll tbody tr > :nth-child({titles.index(title) + 1})").all_inner_texts()


def test_the_table_sorts_filters_and_hides_columns(page, report):
    rows = rows_of(report)
    before = column(page, "variant")
    assert len(before) == len(rows) == 13
    title = page.locator("#table ~ .scroll thead button", has_text="Prec@1").first
    title.click()
    assert column(page, "Prec@1") == [f"{float(row['prec1']):.2f}" for row in sorted(rows, key=lambda row: float(row["prec1"]))]
    title.click()
    title.click()
    assert column(page, "variant") == before
    page.locator("#table ~ .tools input[type=search]").fill("AFFINE w4")
    assert column(page, "variant") == ["W4 int affine"]
    assert page.locator("#table ~ .tools [role=status]").inner_text() == "1 of 13 rows"
    page.locator("#table ~ .tools summary").click()
    page.get_by_label("Prec@5").uncheck()
    assert not page.locator("#table ~ .scroll thead th", has_text="Prec@5").is_visible()
    assert page.locator("#table ~ .scroll tbody td:visible").count() == page.locator("#table ~ .scroll thead th:visible").count()
    page.locator("#table ~ .tools input[type=search]").fill("")
    assert (
        page.locator("#table ~ .scroll tbody td:visible").count()
        == 13 * page.locator("#table ~ .scroll thead th:visible").count()
    )


def test_a_point_tells_its_number_and_a_click_brings_out_its_curve_everywhere(page, report):
    """Every point of every figure, by its title, and one of them by a real pointer."""
    (row,) = [row for row in rows_of(report, "epochs.csv") if row["variant"] == "W8 int affine" and int(row["epoch"]) == EPOCHS]
    wanted = f"W8 int affine, epoch {EPOCHS}: Prec@1 {float(row['prec1']):.2f}"
    point = page.locator('.figure:has(#figure-1) svg [data-series="W8 int affine"]').last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("[role=tooltip]")
    assert tip.is_visible() and f", epoch {EPOCHS}: Prec@1 " in tip.inner_text()
    told = tip.inner_text().split(",")[0]  # of points that lie on each other, the last
    page.mouse.down()
    page.mouse.up()
    bright = page.locator(".figure svg [data-series]:not(.dim)").evaluate_all("all => all.map(one => one.dataset.series)")
    assert told in bright and not {"W2 int", "W2 int affine"} & {*bright} and page.locator(".figure svg .dim").count() > 0
    page.keyboard.press("Escape")
    assert page.locator(".figure svg .dim").count() == 0
    page.mouse.move(1, 1)
    assert not tip.is_visible()
    figure = (report / "figures" / "prec1_by_epoch.svg").read_text(encoding="utf-8")
    assert f"<title>{wanted}</title>" in figure


def test_a_figure_is_enlarged_and_comes_back(page):
    svg, buttons = page.locator(".figure svg").first, page.locator(".figure .zoom").first.locator("button")
    whole = [float(number) for number in svg.get_attribute("viewBox").split()]
    assert buttons.nth(2).is_disabled()
    buttons.nth(0).click()
    assert float(svg.get_attribute("viewBox").split()[2]) == pytest.approx(whole[2] / 1.5, rel=1e-3)
    buttons.nth(2).click()
    assert [float(number) for number in svg.get_attribute("viewBox").split()] == pytest.approx(whole, rel=1e-3)


def test_sections_are_tabs_that_links_open(page):
    assert page.locator("#results").is_visible() and not page.locator("#protocol").is_visible()
    page.get_by_role("tab", name="Protocol").click()
    assert page.locator("#protocol").is_visible() and not page.locator("#results").is_visible()
    page.goto(f"{page.url.split('#')[0]}#table")
    page.reload()
    assert page.locator("#table").is_visible() and not page.locator("#protocol").is_visible()
    page.get_by_role("tab", name="Everything").click()
    assert page.locator("#results").is_visible() and page.locator("#protocol").is_visible()


@pytest.mark.parametrize("width", [390, 1280])
def test_only_tables_and_figures_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_shows_the_difference_first_and_the_rest_on_request(page):
    page.set_viewport_size({"width": 390, "height": 900})
    page.reload()
    heads = page.locator("#table ~ .scroll thead th:visible")
    assert heads.all_inner_texts()[:4] == ["variant", "Prec@1", "delta", "95 % CI"]
    page.locator("#table ~ .tools summary").click()
    page.get_by_label("Prec@5").check()
    assert heads.all_inner_texts()[:3] == ["variant", "Prec@1", "Prec@5"]


def test_without_scripts_all_of_it_is_there(shots, report):
    with shots.open_page(1280, 1000) as (page, _):
        plain = page.context.browser.new_context(java_script_enabled=False).new_page()
        plain.goto((report / "report.html").as_uri())
        assert plain.locator("#results").is_visible() and plain.locator("#protocol").is_visible()
        assert not plain.locator("#everything").is_visible()


def test_the_page_is_one_small_file(report):
    assert Path(report, "report.html").stat().st_size < 1_500_000
