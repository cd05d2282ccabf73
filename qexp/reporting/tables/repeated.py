"""The table of variants that were repeated, with other seeds or other calibration images: means and deviations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from qexp.base.table import Column, Table
from qexp.config.metrics import ALWAYS, MetricInfo
from qexp.reporting.frames.names import shared_words
from qexp.reporting.frames.repeats import without_draws
from qexp.reporting.frames.summary import is_float, widths_of
from qexp.reporting.tables.columns import DESCRIBING, GRID, Filled, rounded_column
from qexp.reporting.tables.metric_cells import is_accuracy, number_text
from qexp.reporting.tables.render import numbers_text
from qexp.reporting.tables.statistic_cells import seed_statistics

_COUNTS = ("num_seeds", "num_draws")
MEANS = "Mean +- standard deviation (ddof 1)."


def repeats_title(seeds: pd.DataFrame) -> str:
    """What was repeated.

    Args:
        seeds: of `seed_table`.
    """
    draws = seeds["num_draws"].notna().sum() if "num_draws" in seeds else 0
    return "Repeated draws" if draws == len(seeds) else "Repeated seeds and draws" if draws else "Repeated seeds"


def means_title(seeds: pd.DataFrame) -> str:
    """What stands above the table on the screen.

    Args:
        seeds: of `seed_table`.
    """
    return f"mean +- sd over {repeats_title(seeds).removeprefix('Repeated ')}"


def seeds_display(seeds: pd.DataFrame, table: pd.DataFrame, metrics: Sequence[MetricInfo] = ALWAYS) -> Table:
    """The means, rounded; a loss, which tells little beside an accuracy, is in `seeds.csv`.

    Args:
        seeds: of `seed_table`.
        table: that they are of.
        metrics: that the table has.
    """
    gridded = seeds[~is_float(seeds) & (seeds["mode"] != "half")]
    words = shared_words(table)
    table = without_draws(table)
    named = {label.text: label.without(words).text for label in table["named"]}
    values = {name: list(seeds[name]) for name in DESCRIBING if name in seeds}
    values |= {name: [None if pd.isna(count) else int(count) for count in seeds[name]] for name in _COUNTS if name in seeds}
    widths = dict(zip(zip(table["variant"], table["bits"], strict=True), widths_of(table), strict=True))
    values |= {"bits": [widths[pair] for pair in zip(seeds["variant"], seeds["bits"], strict=True)]}
    values |= {"variant": [named[name] for name in seeds["variant"]], "mode": list(seeds["mode"].mask(is_float(seeds), ""))}
    groups = ["group"] if seeds["group"].nunique() > 1 else []
    differing = [name for name in GRID if gridded[name].nunique() > 1]
    columns: list[Filled] = [
        (DESCRIBING[name], values[name]) for name in (*groups, "variant", "bits", "mode", *differing, *_counts(seeds))
    ]
    titles = {row.name: row.title for row in metrics if is_accuracy(row)} | {"vs_control": "vs control"}
    own = {row.name: row for row in metrics if not row.always}
    for name, title in (titles | {name: row.title for name, row in own.items()}).items():
        if f"{name}_mean" in seeds:
            pairs = zip(seeds[f"{name}_mean"], seeds[f"{name}_sd"], strict=True)
            cells = [_mean_and_sd(mean, sd, own.get(name)) for mean, sd in pairs]
            columns.append((Column(name=name, title=title, kind="number", form=str), cells))
    if "images_sd" in seeds:
        columns.append(rounded_column("sd of images", numbers_text(seeds["images_sd"], "{:.2f}".format)))
    return Table.of_values([*columns, *(rounded_column(title, cells) for title, cells in seed_statistics(seeds))])


def _counts(seeds: pd.DataFrame) -> list[str]:
    """The columns that count what was repeated."""
    names = {"num_seeds": "num_draws" not in seeds or seeds["num_draws"].isna().any(), "num_draws": "num_draws" in seeds}
    return [name for name, has_any in names.items() if has_any]


def _mean_and_sd(mean: float, sd: float, row: MetricInfo | None) -> str:
    """Two decimals each, or as the metric's row says; nothing where there is no mean."""
    form = "{:.2f}".format if row is None else partial(number_text, row)
    return "" if pd.isna(mean) else f"{form(mean)} +- {form(sd).removeprefix('+')}"
