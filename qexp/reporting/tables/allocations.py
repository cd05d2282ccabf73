"""Bits per layer that `qexp.analyze task=allocate` chose: its tables and sentences, for its own report and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from qexp.base.table import Column, Table, html_table
from qexp.base.text import mib_text
from qexp.config.analyze import MEASURE_TITLES

NUMBERS = (
    Column(name="average_bits", title="bits", kind="number", form=".3f"),
    Column(name="size_bytes", title="MiB", kind="number", form=mib_text),
    Column(name="predicted", title="predicted", kind="number"),
    Column(name="kl", title="KL", kind="number"),
    Column(
        name="ratio", title="measured/predicted", kind="number", form=".2f",
        value=lambda choice: choice.kl / choice.predicted if choice.predicted and choice.kl is not None else None,
    ),
    Column(name="prec1", title="Prec@1", kind="percent"),
    Column(name="delta_prec1", title="change", kind="points"),
    Column(name="test_prec1", title="test Prec@1", kind="percent"),
)  # fmt: skip


@dataclass(frozen=True)
class ChoiceComparison:
    """Two choices scored on the same images.

    Args:
        method: name of the first choice.
        reference: name of the second choice.
        n: images.
        difference: Prec@1 of `method` less that of `reference`, points.
        low: lower end of its interval, points.
        high: upper end of its interval, points.
        level: of the interval, 0 to 1.
        p_value: exact McNemar p.
        n10: images that `reference` has right and `method` wrong.
        n01: images that `reference` has wrong and `method` right.
        disagreement: share of images whose predictions differ, percent; None where it is not known.
    """

    method: str
    reference: str
    n: int
    difference: float
    low: float
    high: float
    level: float
    p_value: float
    n10: int
    n01: int
    disagreement: float | None


def choice_title(method: str, measure: str, width: int) -> str:
    """`exact by KL`, `uniform 4`.

    Args:
        method: `exact`, `greedy` or `uniform`.
        measure: whose sum was made small; empty for `uniform`.
        width: of the first layer, in bits.
    """
    return f"{method} by {MEASURE_TITLES[measure]}" if measure else f"{method} {width}"


def comparison_sentence(compared: ChoiceComparison, scored: str) -> str:
    """One difference in words; a verdict only where its interval excludes zero.

    Args:
        compared: the two choices.
        scored: which images.
    """
    verdict = "better" if compared.low > 0 else "worse" if compared.high < 0 else "not significantly different"
    ends = f"{compared.low:+.2f} to {compared.high:+.2f}"
    interval = f"{compared.difference:+.2f} points, {100 * compared.level:g} % interval {ends}"
    counts = f"lost/won {compared.n10}/{compared.n01}, McNemar p = {compared.p_value:.2g}, n = {compared.n} {scored}"
    return f"{compared.method} against {compared.reference}: {interval} ({counts}): {verdict}."


def explained(images: str, scored: str) -> str:
    """What the columns of choices are.

    Args:
        images: that layers were compared on.
        scored: what was chosen is tested on.
    """
    return (
        f"*predicted*: sum of the KL of single layers; *KL*, *Prec@1*, *change*: of the network with all of them quantized, on "
        f"{images}, in nats, percent and points; *measured/predicted*: 1 where losses add up. *test Prec@1*: on {scored}."
    )


def allocations_for_page(folder: Path) -> list[dict[str, object]]:
    """What the page shows of each allocation of an experiment: title, sentences, the choices and the bits of each layer.

    One whose files are not all there, or of two runs with other choices, as where a command was killed, is left out.

    Args:
        folder: `results/<name>`.
    """
    pairs = [(path, path.with_name("layers.csv")) for path in sorted(folder.glob("allocation/*/methods.csv"))]
    tables = [(pd.read_csv(path), pd.read_csv(layers)) for path, layers in pairs if layers.is_file()]
    return [_for_page(methods, layers) for methods, layers in tables if list(layers.columns[1:]) == _keys(methods)]


def choice_key(method: str, measure: str) -> str:
    """`exact_kl`, `uniform`: the column of a choice in `layers.csv`.

    Args:
        method: as of `choice_title`.
        measure: likewise.
    """
    return f"{method}_{measure}" if measure else method


def _keys(methods: pd.DataFrame) -> list[str]:
    """The columns that `layers.csv` of these choices has."""
    return [choice_key(*names) for names in zip(methods["method"], methods["measure"].fillna(""), strict=True)]


def _for_page(methods: pd.DataFrame, layers: pd.DataFrame) -> dict[str, object]:
    rows = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in methods.to_dict("records")]
    # Files of qexp 0.1.0 do not say which images these were, nor the budget.
    images, scored = (str(rows[0].get(key) or words) for key, words in (("images", "other images"), ("scored", "test images")))
    widths = [list(map(int, layers[column])) for column in layers.columns[1:]]
    titles = [
        choice_title(str(row["method"]), str(row["measure"] or ""), bits[0]) for row, bits in zip(rows, widths, strict=True)
    ]
    chosen = [SimpleNamespace(**row, choice=title) for row, title in zip(rows, titles, strict=True)]
    columns = [(Column(name=title, title=title, kind="count"), bits) for title, bits in zip(titles, widths, strict=True)]
    names = (Column(name="layer", title="layer", kind="text"), list(layers["layer"]))
    return {
        "title": f"Bits per layer: {rows[0]['budget']}" if rows[0].get("budget") else "Bits per layer",
        "sentences": [comparison_sentence(_compared(row), scored) for row in rows if row.get("test_reference")],
        "choices": html_table(Table.of((Column(name="choice", title="choice", kind="text"), *NUMBERS), chosen)),
        "explained": explained(images, scored),
        "layers": html_table(Table.of_values([names, *columns])),
    }


def _compared(row: Mapping[str, object]) -> ChoiceComparison:
    """The comparison in a row of `methods.csv`, whose counts a gap made numbers with a point."""

    def number(name: str) -> float:
        return float(str(row[f"test_{name}"]))

    return ChoiceComparison(
        method=str(row["method"]),
        reference=str(row["test_reference"]),
        n=int(number("n")),
        difference=number("difference"),
        low=number("low"),
        high=number("high"),
        level=number("level"),
        p_value=number("p_value"),
        n10=int(number("n10")),
        n01=int(number("n01")),
        disagreement=None if row.get("test_disagreement") is None else number("disagreement"),
    )
