"""`verify` of what was asked for beside the table: written tables and the columns that read them, computed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from qexp.config.metrics import METRICS
from qexp.reporting.frames.compared import beside_float
from qexp.reporting.frames.predictions import Key, Measurement, StoredPredictions
from qexp.reporting.statistics.asked import code_of, columns_of

if TYPE_CHECKING:
    from qexp.reporting.statistics.verify import Verification


def check_asked_tables(
    result: Verification, folder: Path, table: pd.DataFrame, stored: StoredPredictions, floats: Mapping[Measurement, Key]
) -> None:
    """Compare each table of `qexp.config.metrics` that lies in a folder with what stored predictions give.

    Args:
        result: what is added to.
        folder: of the tables.
        table: `table.csv`.
        stored: predictions.
        floats: the float network of each measurement.
    """
    compared = beside_float(table, stored, floats)
    for row in METRICS.values():
        if row.file is None or not (folder / row.file).exists():
            continue
        written = pd.read_csv(
            folder / row.file, dtype=dict.fromkeys(("training", "label", "variant", "variant_key", "name"), str)
        )
        names = dict(zip(written["class"], written["name"], strict=True))
        again = code_of(row)(compared, [names.get(number, str(number)) for number in range(max(names, default=-1) + 1)])
        keys = ["training", "variant_key", "split", "epoch", "class"]
        known = {values[:5]: values[5:] for values in _values(again, keys)}
        for values in _values(written, keys):
            if values[:5] not in known:
                result.left[f"{row.file}, some rows"] = "no predictions are stored"
                continue
            for column, number, other in zip(_numbers(written, keys), values[5:], known[values[:5]], strict=True):
                result.compare(row.file, f"{values[1]}, class {values[4]}", column, number, other)
        for reader, others in columns_of(row.name, again, table).items():
            for variant, number, other in zip(table["variant"], table.get(reader.name, ()), others, strict=False):
                if other is not None:
                    result.compare("table.csv", variant, reader.name, number, other)


def _numbers(frame: pd.DataFrame, keys: list[str]) -> list[str]:
    return [name for name in frame if name not in keys and pd.api.types.is_numeric_dtype(frame[name])]


def _values(frame: pd.DataFrame, keys: list[str]) -> list[tuple]:
    return list(frame[[*keys, *_numbers(frame, keys)]].itertuples(index=False, name=None))
