"""`results/<name>/`: tables and figures, made from the journal alone; nothing is parsed from text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pandas as pd

from qexp.base.errors import UserError
from qexp.base.table import Table, lines
from qexp.config.metrics import prec5_of_few
from qexp.reporting.captions import on_page, remove_others
from qexp.reporting.frames.jobs import format_jobs, jobs_of, variant_states
from qexp.reporting.frames.layers import with_choices
from qexp.reporting.frames.load import asked_of, records_of, sweeps_of
from qexp.reporting.frames.names import renamed, short_names
from qexp.reporting.frames.predictions import FILE, load_predictions, write_compact
from qexp.reporting.frames.protocol import MixedProtocolsError, Protocols, find_protocols
from qexp.reporting.frames.summary import summarize
from qexp.reporting.index import write_index
from qexp.reporting.indexed import PAGE
from qexp.reporting.page import Held, write_page
from qexp.reporting.statistics.asked import Made, check_asked, make_asked
from qexp.reporting.statistics.paired import with_statistics
from qexp.reporting.statistics.power import at_chance
from qexp.reporting.statistics.verdict import Verdict, compare_variants
from qexp.reporting.tables.allocations import allocations_for_page
from qexp.reporting.tables.asked import asked_for_page, write_asked
from qexp.reporting.tables.card import protocol_card, runs_of
from qexp.reporting.tables.exports import exports_for_page, exports_of, format_exports, write_exports
from qexp.reporting.tables.plans import plans_of, write_plans
from qexp.reporting.tables.repeated import means_title, seeds_display
from qexp.reporting.tables.results import display, format_table, write_tables
from qexp.tracking.journal import experiment_rows
from qexp.tracking.row_types import ExportRow, RunRow
from qexp.tracking.rows import Row

TOLD = (  # columns of the table that the `result` event has
    *("training", "variant", "variant_key", "bits", "mode", "seed", "epoch", "split", "n", "prec1", "prec5", "loss", "kl"),
    *("delta_prec1", "ci_low", "ci_high", "p_value", "p_holm", "size_bytes", "state"),
)


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        name: experiment.
        folder: `results/<name>`.
        tables: files of tables, and the page.
        figures: files of figures.
        rounded: the table of results and, where seeds were repeated, that of their means, as people read them.
        table: the table and the states of the jobs as fixed-width text, for the screen.
        places: lines that name the page, where anything was evaluated, and the index of all experiments.
        rows: of the table of results, with every digit.
    """

    name: str
    folder: Path
    table: str
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    rounded: tuple[Table, ...] = ()
    places: tuple[str, ...] = ()
    rows: tuple[Mapping[str, object], ...] = ()

    def where(self, what: str) -> str:
        """The line that says where everything is.

        Args:
            what: there is, in words.
        """
        return f"{what}: {self.folder}/" if self.rows else f"nothing evaluated yet; see {self.folder}/jobs.csv"

    def as_event(self) -> dict[str, object]:
        """What the `result` event of a command says of it."""
        page = next((path for path in self.tables if path.name == PAGE), None)
        files = {"folder": self.folder, "page": page, "tables": self.tables, "figures": self.figures}
        return {"name": self.name, **files, "rows": self.rows}


def write_report(
    name: str,
    *,
    runs_dir: str | Path,
    results_dir: str | Path,
    mixed: bool = False,
    metrics: Sequence[str] = (),
    figures: bool = True,
    titles: bool = True,
    pdf: bool = False,
    rows: Sequence[Row] | None = None,
) -> Report:
    """Write an experiment's tables and figures, as far as it has got.

    Args:
        name: experiment.
        runs_dir: where its journal lies.
        results_dir: parent of the folder that is written.
        mixed: put rows of different protocols into one table, marked; where `evaluate.across` asked, they are anyway.
        metrics: tables and matrices of stored predictions, beside those that the experiment asked for.
        figures: draw them.
        titles: with headings; False for a paper, whose captions say it.
        pdf: figures as PDF too.
        rows: of its journal, where the caller has read it; None reads them.

    Raises:
        UserError: no such experiment, another metric, or neither job nor evaluation in it.
        MixedProtocolsError: its evaluations follow several protocols, and `mixed` does not ask for that; nothing is written.
    """
    wanted, folder = check_asked(metrics), Path(results_dir) / name
    rows = experiment_rows(name, runs_dir) if rows is None else rows
    asked, records, jobs = asked_of(rows), with_choices(records_of(rows), folder), jobs_of(rows)
    _check_begun(name, records, jobs)
    runs, exports, sweeps = runs_of(rows), _as_in(records, exports_of(rows)), sweeps_of(rows)
    verdict, made, screen, rounded = None, Made(), [], []  # screen: texts below each other
    if not records.empty:
        protocols = _protocols(name, records, runs, mixed)
        records = with_statistics(records, stored := load_predictions(records, runs_dir))
        table = summarize(records, variant_states(jobs), asked.metrics)
        verdict = compare_variants(table, records, stored, asked.metrics)
        verdict, made = make_asked(verdict, check_asked((*asked.more, *wanted)), stored, asked.class_names)
        compact = write_compact(folder, (verdict.table, verdict.early), stored)
        gaps, digest = (*verdict.gaps, *prec5_of_few(len(asked.class_names))), compact[1] if compact else ""
        chance = tuple(at_chance(verdict.table, len(asked.class_names)))
        verdict = replace(verdict, digest=digest, protocols=protocols.sentences, gaps=gaps, at_chance=chance)
        screen = _screen(verdict, rounded := _rounded(verdict))
    tables = [*write_tables(name, records, folder, verdict, sweeps, jobs).values()]
    tables += [*write_exports(name, exports, folder), *write_asked(folder, made)]
    is_done = verdict is not None and jobs["state"].eq("done").all()  # the table says so
    screen += [*([] if jobs.empty or is_done else [format_jobs(jobs)]), *([format_exports(exports)] if exports else [])]
    read, shown = _as_read(records, exports)
    drawn = _drawn(read, shown, made, folder, pdf=pdf, titled=titles) if figures else {}
    remove_others(folder, set(chain(*drawn.values())))
    if verdict is not None:
        tables += [*([folder / FILE] if verdict.digest else []), *write_plans(plans := plans_of(runs, verdict.table), folder)]
        card, figures_of = protocol_card(verdict.table, runs, plans, sweeps), on_page(drawn, made, folder)
        held = Held(asked_for_page(made.tables), exports_for_page(shown), allocations_for_page(folder))
        tables.append(write_page(name, folder, verdict, card=card, figures=figures_of, held=held, sweeps=sweeps))
    page, files = tables[-1] if verdict is not None else None, (tuple(tables), tuple(chain(*drawn.values())))
    return Report(name, folder, "\n\n".join(screen), *files, tuple(rounded), _places(page, Path(results_dir)), _rows(verdict))


def _drawn(
    records: pd.DataFrame, exports: Sequence[ExportRow], made: Made, folder: Path, *, pdf: bool, titled: bool
) -> dict[str, list[Path]]:
    """The files of figures by stem."""
    from qexp.reporting.drawn import draw  # matplotlib takes most of a second, and tables need none

    return draw(records, exports, made, folder, pdf=pdf, titled=titled)


def _as_read(records: pd.DataFrame, exports: Sequence[ExportRow]) -> tuple[pd.DataFrame, list[ExportRow]]:
    """Records and exported networks, called by what tells copies apart."""
    names = short_names(records)
    return renamed(records, names), [row | {"variant": names.get(row["variant"], row["variant"])} for row in exports]


def _as_in(records: pd.DataFrame, exports: Sequence[ExportRow]) -> list[ExportRow]:
    """Exported networks, those with a typed label called as the table calls them."""
    named = records[["run", "named"]].itertuples(index=False) if len(records) else ()
    typed = {run: label.text for run, label in named if label.given}
    return [row | {"variant": typed.get(row["run"], row["variant"])} for row in exports]


def _check_begun(name: str, records: pd.DataFrame, jobs: pd.DataFrame) -> None:
    if records.empty and jobs.empty:
        allowed = "an experiment with at least one evaluation"
        raise UserError("name", name, allowed=allowed, remedy="Run python -m qexp.train first.")


def _protocols(name: str, records: pd.DataFrame, runs: Mapping[str, RunRow], mixed: bool) -> Protocols:
    """What the rows have not in common; raises where no table should hold them together and nobody asks for that."""
    protocols = find_protocols(records, {key: run["params"] for key, run in runs.items()})
    if protocols.sentences and not mixed and not protocols.files:
        raise MixedProtocolsError(name, protocols)
    return protocols


def _rows(verdict: Verdict | None) -> tuple[dict[str, object], ...]:
    """What the `result` event has of the table."""
    if verdict is None:
        return ()
    return tuple(verdict.table[[column for column in TOLD if column in verdict.table]].to_dict("records"))


def _rounded(verdict: Verdict) -> list[Table]:
    """The table of results and, where something was repeated, that of means."""
    repeated = [seeds_display(verdict.seeds, verdict.table, verdict.metrics)] if len(verdict.seeds) else []
    return [display(verdict.table, wide=True, metrics=verdict.metrics).table, *repeated]


def _screen(verdict: Verdict, rounded: Sequence[Table]) -> list[str]:
    """The table of means, that of results and the sentences, as texts for the screen."""
    words = [textwrap.fill(text, 130) for text in (*verdict.warnings, *verdict.sentences, *verdict.gaps)]
    means = ["\n".join([means_title(verdict.seeds), "", *lines(table, rule=True)]) for table in rounded[1:]]
    return [*means, format_table(verdict.table, verdict.metrics), *(["\n".join(words)] if words else [])]


def _places(page: Path | None, results_dir: Path) -> tuple[str, ...]:
    """Write the index; lines that name it and the page, or why there is no index: the report is there all the same."""
    try:
        index = f"index: {write_index(results_dir)}"
    except OSError as error:
        index = f"no index: {error}"
    return (index,) if page is None else (f"page: {page}", index)
