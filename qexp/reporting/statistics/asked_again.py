"""`verify` of what was asked for beside the table: written tables and the columns that read them, computed again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from qexp.config.metrics import METRICS
from qexp.reporting.frames.compared import Matrix, beside_float
from qexp.reporting.frames.predictions import StoredPredictions
from qexp.reporting.statistics.asked import code_of, columns_of
from qexp.reporting.statistics.verification import Verification


def check_asked_tables(result: Verification, folder: Path, table: pd.DataFrame, stored: StoredPredictions) -> None:
    """Compare each table and matrix of `qexp.config.metrics` that lies in a folder with what stored predictions give.

    Args:
        result: what is added to.
        folder: of the tables.
        table: `table.csv`.
        stored: predictions.
    """
    compared = beside_float(table, stored)
    for row in METRICS.values():
        if row.file is not None and (folder / row.file).exists():
            written = pd.read_csv(folder / row.file, dtype=TEXTS)
            names = dict(zip(written["class"], written["name"], strict=True)) if row.gives == "table" else {}
            again = code_of(row)(compared, [names.get(number, str(number)) for number in range(max(names, default=-1) + 1)])
            if row.gives == "matrix":
                _check_matrix(result, row.file, written.iloc[:, 1:], again)
                continue
            _check_table(result, row.file, written, again)
            for reader, others in columns_of(row.name, again, table).items():
                for variant, number, other in zip(table["variant"], table.get(reader.name, ()), others, strict=False):
                    if other is not None:
                        result.compare("table.csv", variant, reader.name, number, other)


TEXTS = dict.fromkeys(("training", "label", "variant", "variant_key", "name"), str)
KEYS = ["training", "variant_key", "split", "epoch", "class"]


def _check_table(result: Verification, file: str, written: pd.DataFrame, again: pd.DataFrame) -> None:
    """Row by row, as `KEYS` name them."""
    numbers = [name for name in written if name not in KEYS and pd.api.types.is_numeric_dtype(written[name])]
    known = {values[: len(KEYS)]: values for values in again[[*KEYS, *numbers]].itertuples(index=False, name=None)}
    for values in written[[*KEYS, *numbers]].itertuples(index=False, name=None):
        others = known.get(values[: len(KEYS)])
        if others is None:
            result.left[f"{file}, some rows"] = "no predictions are stored"
            continue
        for column, number, other in list(zip([*KEYS, *numbers], values, others, strict=True))[len(KEYS) :]:
            result.compare(file, f"{values[1]}, class {values[4]}", str(column), number, other)


def _check_matrix(result: Verification, file: str, written: pd.DataFrame, again: Matrix | None) -> None:
    """Cell by cell, in their order."""
    if again is None or again.counts.shape != written.shape:
        result.wrong.append(f"{file}: its classes are not those of the predictions")
        return
    for number, (counts, others) in enumerate(zip(written.to_numpy(), again.counts.to_numpy(), strict=True)):
        for column, count, other in zip(written.columns, counts, others, strict=True):
            result.compare(file, f"row {number + 1}, column {column}", "images", count, other)
