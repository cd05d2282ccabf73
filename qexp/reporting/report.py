"""`results/<name>/`: tables and figures, made from the journal alone; nothing is parsed from text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from qexp.base.errors import UserError
from qexp.reporting.figures import prec1_by_bits, prec1_by_epoch
from qexp.reporting.jobs import format_jobs, load_jobs, variant_states
from qexp.reporting.load import load_records, load_sweeps
from qexp.reporting.style import save
from qexp.reporting.summary import summarize
from qexp.reporting.tables import format_table, write_tables


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        name: experiment. folder: `results/<name>`. tables, figures: the files.
        table: the table and the states of the jobs as fixed-width text, for the screen.
    """

    name: str
    folder: Path
    table: str
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]


def write_report(name: str, *, runs_dir: str | Path, results_dir: str | Path) -> Report:
    """Write an experiment's tables and figures, as far as it has got.

    Args:
        name: experiment. runs_dir: where its journal lies. results_dir: parent of the folder that is written.

    Raises:
        UserError: no such experiment, or neither job nor evaluation in it.
    """
    records, jobs = load_records(name, runs_dir), load_jobs(name, runs_dir)
    if records.empty and jobs.empty:
        raise UserError(
            "name", name, allowed="an experiment with at least one evaluation", remedy="Run python -m qexp.train first."
        )
    folder = Path(results_dir) / name
    tables = write_tables(name, records, folder, load_sweeps(name, runs_dir), jobs)
    shown = [] if records.empty else [format_table(summarize(records, variant_states(jobs)))]
    shown += [] if jobs.empty else [format_jobs(jobs)]
    figures = [path for stem, figure in _figures(records) for path in save(figure, folder / "figures" / stem)]
    return Report(name, folder, "\n\n".join(shown), tuple(tables.values()), tuple(figures))


def _figures(records: pd.DataFrame) -> list[tuple[str, Figure]]:
    """Figures by their file's stem; none where nothing was evaluated."""
    if records.empty:
        return []
    drawn = [("prec1_by_epoch", prec1_by_epoch(records))] if records["epoch"].nunique() > 1 else []
    by_bits = prec1_by_bits(records)
    return drawn + ([("prec1_by_bits", by_bits)] if by_bits is not None else [])
