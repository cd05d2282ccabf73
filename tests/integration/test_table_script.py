"""What the script of tables takes for a number, and in which order cells of every kind stand, in a real browser."""

from html import escape
from pathlib import Path

import qexp.reporting

TABLES = Path(qexp.reporting.__file__).with_name("tables.js")
SORT = "document.querySelectorAll('table').forEach(one => sortable(one));"
PAGE = f"<!doctype html><meta charset=utf-8>{{}}<script>{{}}\n{SORT}</script>"
RISING = {
    "points": ["-14.13", "-0.10", "+0.00", "+0.75"],
    "points of repeats": ["-0.10 +- 0.13", "0.03 +- 0.16", "0.30 +- 0.02"],
    "intervals": ["-14.75 to -13.51", "-0.06 to -0.04", "-0.06 to +0.06", "+0.02 to +0.23"],
    "p": ["<1e-300", "3e-28", "0.0023", "0.62", "1"],
    "SQNR": ["-3.1", "24.0", "exact"],
    "steps below what is told": ["0 (0)", "<0.001 (0)", "0.001 (<0.001)", "28.387 (<0.001)"],
    "sizes": ["0.0020 MiB", "0.288 MiB", "12.00 MiB"],
    "days": ["2025-12-31", "2026-02-01", "2026-11-30", "2026-12-01"],
    "flips": ["3/4", "3/12", "12/3"],
    "widths of layers": ["2", "2-8, mean 3.0", "3-6, mean 4.0", "8"],
    "names": ["layer2.conv", "layer10.conv", "stem"],
    "not a number": ["0.5", "2.0", "nan"],
    "nothing": ["-1.5", "0.5", ""],
}


def test_cells_of_every_kind_stand_in_order(shots, tmp_path):
    """A table for each kind, rising and falling; what is no number stands below, whichever the order."""
    rows = ["".join(f"<tr><td>{escape(text)}" for text in [*rising[1::2], *rising[::2]]) for rising in RISING.values()]
    tables = "".join(f"<table><thead><tr><th>title</thead><tbody>{cells}</tbody></table>" for cells in rows)
    path = tmp_path / "page.html"
    path.write_text(PAGE.format(tables, TABLES.read_text(encoding="utf-8")), encoding="utf-8")
    with shots.open_page(800, 600) as (page, errors):
        page.goto(path.as_uri())
        for number, (kind, rising) in enumerate(RISING.items()):
            table = page.locator("table").nth(number)
            table.locator("button").click()
            assert table.locator("td").all_inner_texts() == rising, kind
            table.locator("button").click()
            below = [text for text in rising if text in ("", "nan")]
            falling = [text for text in rising[::-1] if text not in below] + below
            assert table.locator("td").all_inner_texts() == falling, kind
    assert errors == []
