"""An experiment as one tidy frame, for notebooks that go on where the report ends."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from qexp.base.errors import UserError
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import KEY_COLUMNS, load_predictions
from qexp.reporting.frames.summary import CLAIMS, summarize
from qexp.reporting.statistics.paired import with_statistics
from qexp.reporting.statistics.verdict import compare_variants
from qexp.reporting.tables.card import load_runs


def load(name: str, runs_dir: str | Path = "runs") -> pd.DataFrame:
    """The evaluations of an experiment: one row per variant and epoch, with configuration and statistics.

    Columns: the fields of `qexp.tracking.record.Record` (`prec1`, `loss`, `bits`, `epoch`, `n`, ...); `label` and `group` of the
    training; `param.<key>` for each setting that any run has (`param.train.lr`); the intervals and tests of
    `qexp.reporting.statistics.paired.with_statistics` where predictions were kept; `is_last`, true in each variant's last row;
    and of the last rows, as in `table.csv`, `CLAIMS`; where evaluations followed several protocols, `protocol`, a
    letter: rows of different letters are no comparison.

    Figures are functions of it: `prec1_by_epoch` and `prec1_by_bits` in `qexp.reporting.figures.accuracy`, `prec1_by_size` in
    `qexp.reporting.figures.cost`, `prec1_by_variant` in `qexp.reporting.figures.variants`, `loss_by_epoch` in
    `qexp.reporting.figures.loss`; each returns a matplotlib `Figure`.
    What `qexp.analyze` found of the layers is `qexp.reporting.frames.layers.load_layers`, drawn by
    `qexp.reporting.figures.layers`.

    Args:
        name: experiment.
        runs_dir: where its journal and its predictions lie.

    Raises:
        UserError: no such experiment, or nothing was evaluated in it.
    """
    records = load_records(name, runs_dir)
    if records.empty:
        raise UserError("name", name, allowed="an experiment with at least one evaluation")
    stored = load_predictions(records, runs_dir)
    records = with_statistics(records, stored)
    table = compare_variants(summarize(records), records, stored).table
    last = records.groupby(["training", "variant_key", "split", "n"])["epoch"].transform("max")
    frame = _configured(records.assign(is_last=records["epoch"] == last), name, runs_dir)
    return frame.merge(table[[*KEY_COLUMNS, *CLAIMS]].drop_duplicates(KEY_COLUMNS), on=KEY_COLUMNS, how="left")


def _configured(records: pd.DataFrame, name: str, runs_dir: str | Path) -> pd.DataFrame:
    """Add every parameter of each row's run, a column each."""
    runs = load_runs(name, runs_dir)
    params = [runs[run].get("params", {}) if run in runs else {} for run in records["run"]]
    keys = dict.fromkeys(key for values in params for key in values)
    settings = pd.DataFrame(
        {f"param.{key}": pd.Series([values.get(key) for values in params], dtype=object).infer_objects() for key in keys}
    )
    settings.index = records.index
    return pd.concat([records.drop(columns=[column for column in settings if column in records]), settings], axis=1)
