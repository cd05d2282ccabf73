"""`results/<name>/`: tables and figures, made from the journal alone; nothing is parsed from text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexp.base.errors import UserError
from qexp.reporting.figures import prec1_by_bits, prec1_by_epoch
from qexp.reporting.load import load_records, load_sweeps
from qexp.reporting.style import save
from qexp.reporting.summary import summarize
from qexp.reporting.tables import format_table, write_tables


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        name: experiment. folder: `results/<name>`. table: the table as fixed-width text, for the screen.
        tables, figures: the files.
    """

    name: str
    folder: Path
    table: str
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]


def write_report(name: str, *, runs_dir: str | Path, results_dir: str | Path) -> Report:
    """Write an experiment's tables and figures.

    Args:
        name: experiment. runs_dir: where its journal lies. results_dir: parent of the folder that is written.

    Raises:
        UserError: no such experiment, or nothing was evaluated in it.
    """
    records = load_records(name, runs_dir)
    if records.empty:
        raise UserError(
            "name", name, allowed="an experiment with at least one evaluation", remedy="Run python -m qexp.train first."
        )
    folder = Path(results_dir) / name
    tables = write_tables(name, records, folder, load_sweeps(name, runs_dir))
    drawn = {"prec1_by_bits": prec1_by_bits(records)}
    if records["epoch"].nunique() > 1:
        drawn["prec1_by_epoch"] = prec1_by_epoch(records)
    figures = []
    for stem, figure in sorted(drawn.items(), reverse=True):
        if figure is not None:
            figures += save(figure, folder / "figures" / stem)
    return Report(name, folder, format_table(summarize(records)), tuple(tables.values()), tuple(figures))
