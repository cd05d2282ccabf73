"""MLflow's UI in a real browser over the store of a sweep: what a user sees after `make ui`."""

import json
import os

import pytest

EPOCHS = 3
# What MLflow 3.17 itself writes to the console, whatever is in the store.
KNOWN = (
    "/ajax-api/2.0/mlflow/users/current",  # asked also of a server without accounts, which answers 404
    "ResizeObserver loop",  # a chart's box was measured once more within one frame; the browser goes on by itself
)
# Each chart's title and curves, as plotly keeps them: name, steps, values. A curve is there twice, once as its highlight.
CURVES = """() => [...document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]')].map(card => [
  card.innerText.split('\\n')[0],
  [...card.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data.map(one => [one.name, [...one.x], [...one.y]])),
])"""


@pytest.fixture(scope="module")
def site(shots, process, tiny, tmp_path_factory):
    """The address of the UI over a sweep's store, and the records of that sweep."""
    folder, before = tmp_path_factory.mktemp("site"), os.getcwd()
    os.chdir(folder)
    try:
        command = (*tiny, "tracking.enabled=true", "tracking.timeout_s=200", f"train.epochs={EPOCHS}", "bits=4,8", "-m")
        done = process("qexp.train", *command)
    finally:
        os.chdir(before)
    assert done.returncode == 0 and "behind" not in done.stdout + done.stderr, done.stderr
    rows = [json.loads(line) for line in (folder / "runs/journal/digits.jsonl").read_text().splitlines()]
    with shots.mlflow_ui(folder / "runs/mlflow.db") as url:
        yield url, [row for row in rows if row["kind"] == "record"]


@pytest.fixture
def page(shots):
    """A page of the browser; whatever it wrote to the console as an error fails the test."""
    with shots.open_page(1280, 1600) as (page, errors):
        yield page
    assert [text for text in errors if not any(known in text for known in KNOWN)] == []


def test_training_variants_and_their_prec1_are_found(site, page, shots):
    url, records = site
    training = records[0]["training"]
    names = {"fp32": f"custom {training[:6]}", "W4 int": "W4 int", "W8 int": "W8 int"}
    experiment = shots.experiment_of(page, url, "digits")
    page.goto(f"{url}{shots.runs_page(experiment, 'TABLE')}", wait_until="domcontentloaded")
    for name in names.values():
        page.get_by_role("link", name=name, exact=True).wait_for()

    page.goto(f"{url}{shots.runs_page(experiment, 'CHART')}", wait_until="domcontentloaded")
    page.wait_for_function(
        f"() => ({CURVES})().some(([title, curves]) => title === 'prec1' && curves.length >= {len(names)})", polling=500
    )
    (curves,) = [curves for title, curves in page.evaluate(CURVES) if title == "prec1"]
    drawn = {name: list(zip(steps, values, strict=True)) for name, steps, values in curves}
    recorded = {
        name: [(row["epoch"], row["prec1"]) for row in records if row["variant"] == variant] for variant, name in names.items()
    }
    assert all(len(points) == EPOCHS for points in recorded.values())
    assert drawn == recorded
