"""What `qexp.analyze` measured of layers, as one frame: profiles of variants, and layers quantized one at a time."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

COLUMNS = ("task", "variant", "column", "layer", "role", "bits", "sqnr_db", "kl", "delta_prec1", "n")


def load_layers(folder: str | Path) -> pd.DataFrame:
    """One row per layer and way to quantize it, in the order of the network.

    `task`: `profile` or `sensitivity`. `variant`: label. `column`: its name in a figure, the label, or of single
    layers `4 bits`. `sqnr_db`: of the tensor, infinite where its copy is exact. `kl`, `delta_prec1`, `n`: of the network
    with this layer alone quantized, NaN in a profile, whose variants are scored as a whole.

    Args:
        folder: `results/<name>`.
    """
    folder = Path(folder)
    parts = [_profile(path) for path in sorted(folder.glob("profile/*/tensors.csv"))]
    of_allocation = sorted(folder.glob("allocation/*/sensitivity/sensitivity.csv"))
    single = [_sensitivity(path) for path in (*sorted(folder.glob("sensitivity/*/sensitivity.csv")), *of_allocation)]
    if len(single) > 1:
        single = [part.assign(column=part["variant"] + ": " + part["column"]) for part in single]
    frames = [part for part in (*parts, *single) if len(part)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))


def with_choices(records: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """Say in the names of variants whose layers have widths of their own what chose these: `exact` or `greedy`.

    Args:
        records: of `load_records`.
        folder: `results/<name>`, where allocations lie; a variant is that of an allocation with its label and its size.
    """
    tables = [pd.read_csv(path).dropna(subset="label") for path in sorted(Path(folder).glob("allocation/*/methods.csv"))]
    methods = {(row.label, row.size_bytes): row.method for table in tables for row in table.itertuples()}
    if not methods or "widths" not in records:
        return records
    named = []
    for label, size, widths in zip(records["named"], records["size_bytes"], records["widths"], strict=True):
        plain = label.generated.without([word for word in label.words if word.startswith("#")]).text
        method = methods.get((plain, size), "") if widths else ""
        named.append(label.with_word(method, marks=False) if method else label)
    # The first digits of a key told two choices of the same widths apart, which what chose them does by now.
    bare = [label.without([key[:4]]) for label, key in zip(named, records["variant_key"], strict=True)]
    named = bare if len({label.text for label in bare}) == len({label.text for label in named}) else named
    return records.assign(named=named, variant=[label.text for label in named])


def histogram_sheets(folder: str | Path) -> list[tuple[str, Path]]:
    """The sheets of histograms that profiles drew, SVG, each with the label of its variant."""
    paths = sorted(Path(folder).glob("profile/*/figures/sheet_*.svg"))
    return [(_label(path.parents[1] / "tensors.csv"), path) for path in paths]


def allocation_figures(folder: str | Path) -> list[Path]:
    """The figures of bits per layer that allocations drew, SVG."""
    return sorted(Path(folder).glob("allocation/*/figures/bits.svg"))


def _profile(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    label = _label(path)
    whole = dict.fromkeys(("kl", "delta_prec1", "n"), math.nan)  # a variant is scored as a whole
    return _frame(table.assign(task="profile", variant=label, layer=table["name"], column=label, **whole))


def _sensitivity(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    return _frame(
        table.assign(task="sensitivity", variant=_label(path), role="weight", column=table["bits"].astype(str) + " bits")
    )


def _frame(table: pd.DataFrame) -> pd.DataFrame:
    """The common columns; an exact copy has no number in the files."""
    return table.assign(sqnr_db=table["sqnr_db"].astype(float).fillna(math.inf))[list(COLUMNS)]


def _label(path: Path) -> str:
    """Of a variant: as the table says, or of older ones as its folder is called."""
    table = pd.read_csv(path, nrows=1) if path.exists() else pd.DataFrame()
    return str(table["variant"].iloc[0]) if len(table) and "variant" in table else path.parent.name
