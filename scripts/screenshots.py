"""Screenshots of MLflow's UI over the default sweep, for docs/mlflow.md.

    python -m qexp.train bits=4,8,16 -m
    python scripts/screenshots.py [name=mnist5k] [runs=runs] [out=docs/images]

It drives the system's Chromium (Debian: `apt install chromium`; another one by CHROMIUM=FILE) through playwright, whose own
browsers are not needed. Rejected: selenium, which beside the browser needs a chromedriver of its very version, and whose manager
would download one. `tests/integration/test_browser.py` opens the same pages.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from qexp.tracking.server import LIMIT_S, ServerFailed, runs_page, serving

OPTIONS = {"name": "mnist5k", "runs": "runs", "out": "docs/images"}
COLUMNS = ("params.`bits`", "params.`mode`", "metrics.`prec1`", "metrics.`prec5`", "metrics.`delta_prec1`")
# MLflow opens its assistant beside the first page of a new browser.
NO_ASSISTANT = """localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"""
# What the menu "Columns" does; MLflow keeps it in the browser.
CHOOSE = """([experiment, columns]) => {
  const key = `MLflowLocalStorage-1.1-ExperimentPage-["${experiment}"]-ReactComponentState`
  localStorage.setItem(key, JSON.stringify({...JSON.parse(localStorage.getItem(key)), selectedColumns: columns}))
}"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The system's Chromium, or None."""
    names = (os.environ["CHROMIUM"],) if "CHROMIUM" in os.environ else BROWSERS
    return next((found for name in names if (found := shutil.which(name))), None)


@contextlib.contextmanager
def mlflow_ui(database: Path) -> Iterator[str]:
    """`qexp.ui mlflow=true` over a SQLite store, on a free port; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = database.with_name("ui.log")
    with open(log, "wb") as handle:
        try:
            with serving(f"sqlite:///{database.absolute()}", port, handle) as (url, _):
                yield url
        except ServerFailed as error:
            raise RuntimeError(f"{error}:\n{log.read_text(errors='replace')}") from None


@contextlib.contextmanager
def open_page(width: int, height: int) -> Iterator[tuple[Page, list[str]]]:
    """A page of a headless browser, and the errors that it writes to its console as they come."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments, timeout=LIMIT_S * 1000)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(LIMIT_S * 1000)
        errors: list[str] = []
        page.on("console", lambda one: errors.append(f"{one.text} {one.location['url']}") if one.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page, errors
        browser.close()


def experiment_of(page: Page, url: str, name: str) -> str:
    """MLflow's number of an experiment, from the list of them."""
    page.goto(f"{url}/#/experiments", wait_until="domcontentloaded")
    link = page.get_by_role("link", name=name, exact=True)
    link.wait_for()
    return re.findall(r"experiments/(\d+)", link.get_attribute("href") or "")[0]


def show(page: Page, url: str, experiment: str, out: Path) -> None:
    """Write a picture of the table and one of the charts."""
    page.goto(f"{url}{runs_page(experiment, 'TABLE')}", wait_until="domcontentloaded")
    page.get_by_text("matching runs").wait_for()
    page.evaluate(CHOOSE, [experiment, list(COLUMNS)])
    page.reload(wait_until="domcontentloaded")
    page.get_by_text("delta_prec1", exact=True).wait_for()
    page.screenshot(path=out / "mlflow-table.png")
    page.goto(f"{url}{runs_page(experiment, 'CHART')}", wait_until="domcontentloaded")
    page.locator(".js-plotly-plot").nth(5).wait_for()
    page.screenshot(path=out / "mlflow-charts.png")


def main() -> None:
    options = OPTIONS | dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if unknown := options.keys() - OPTIONS.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {' '.join('='.join(pair) for pair in OPTIONS.items())}")
    if find_browser() is None:
        sys.exit("needs Chromium: apt install chromium, or CHROMIUM=FILE")
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    with mlflow_ui(Path(options["runs"], "mlflow.db")) as url, open_page(1280, 1060) as (page, _):
        page.add_init_script(NO_ASSISTANT)
        show(page, url, experiment_of(page, url, options["name"]), out)
    print(*sorted(out.glob("mlflow-*.png")), sep="\n")


if __name__ == "__main__":
    main()
