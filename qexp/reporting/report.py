"""`results/<name>/`: tables and figures, made from the journal alone; nothing is parsed from text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from qexp.base.errors import UserError
from qexp.base.progress import track
from qexp.base.table import Table, lines
from qexp.config.metrics import prec5_of_few
from qexp.reporting.figures.accuracy import prec1_by_bits, prec1_by_epoch
from qexp.reporting.figures.confusion import draw_matrix
from qexp.reporting.figures.cost import prec1_by_bops, prec1_by_cost, prec1_by_size
from qexp.reporting.figures.layers import sensitivity_map, sqnr_map
from qexp.reporting.figures.loss import loss_by_epoch
from qexp.reporting.figures.style import KINDS, PAPER, save
from qexp.reporting.figures.variants import prec1_by_variant
from qexp.reporting.frames.jobs import format_jobs, jobs_of, variant_states
from qexp.reporting.frames.layers import histogram_sheets, load_layers, with_choices
from qexp.reporting.frames.load import asked_of, records_of, sweeps_of
from qexp.reporting.frames.predictions import FILE, load_predictions, write_compact
from qexp.reporting.frames.protocol import MixedProtocolsError, find_protocols
from qexp.reporting.frames.summary import summarize
from qexp.reporting.index import write_index
from qexp.reporting.indexed import PAGE
from qexp.reporting.page import Drawn, Section, write_page
from qexp.reporting.statistics.asked import IN_REPORTS, Made, check_asked, make_asked
from qexp.reporting.statistics.paired import with_statistics
from qexp.reporting.statistics.verdict import Verdict, compare_variants
from qexp.reporting.tables.asked import asked_for_page, write_asked
from qexp.reporting.tables.card import protocol_card, runs_of
from qexp.reporting.tables.exports import exports_for_page, exports_of, format_exports, write_exports
from qexp.reporting.tables.plans import plans_of, write_plans
from qexp.reporting.tables.repeated import means_title, seeds_display
from qexp.reporting.tables.results import display, format_table, write_tables
from qexp.tracking.journal import experiment_rows
from qexp.tracking.row_types import ExportRow
from qexp.tracking.rows import Row

CAPTIONS = {
    "prec1_by_epoch": (
        "How quantizable the network is as it trains",
        "After each epoch a copy of the weights is quantized and scored; only quantization-aware training is changed by "
        "it. A band is one accuracy's own interval, or one standard deviation over seeds. Variants answer for the same "
        "images: the table compares them, overlapping bands do not.",
    ),
    "loss_by_epoch": (
        "What quantizing costs as it trains",
        "Points against the float network of the same epoch; each width has a scale of its own. A clear interval compares image "
        "by image. Where the predictions of an epoch were not kept (`evaluate.keep=all` keeps them), it is faint and rests on "
        "both accuracies alone, which makes it too wide rather than too narrow.",
    ),
    "prec1_by_bits": (
        "What each bit costs",
        "The last epoch. A bar is the 95 % Wilson interval of an accuracy alone, or one standard deviation over repeated seeds.",
    ),
    "prec1_by_variant": (
        "Every variant",
        "The last epoch, each with the 95 % Wilson interval of its accuracy alone.",
    ),
    "prec1_by_size": (
        "What a byte buys",
        "Stored size counts packed codes, scales, zero points, codebooks and what stays float. Where an interval reaches "
        "over the front, it is not certain which variant stands on it.",
    ),
    "prec1_by_cost": (
        "What a millisecond buys",
        "Exported files in their runtimes, as `qexp.export` measured them, with the 95 % Wilson interval of each accuracy alone.",
    ),
    "prec1_by_bops": (
        "What a bit operation buys",
        "Multiply-accumulates of exported networks, each times the widths of weight and activation. It is a count, not a time: "
        "what a runtime makes of it is its own matter.",
    ),
    "weight_sqnr": (
        "What each layer keeps of its weights",
        "Signal to quantization noise as `qexp.analyze` measured it; a layer with little of it need not be one that matters.",
    ),
    "layer_sensitivity": (
        "What each layer costs",
        "Each layer quantized alone, as `qexp.analyze task=sensitivity` measured it: the divergence of the network's predictions "
        "from the float network's.",
    ),
}
SECTIONS: dict[str, Section] = {  # where a figure stands, if not with the results
    "prec1_by_cost": "deployment",
    "prec1_by_bops": "deployment",
    "weight_sqnr": "layers",
    "layer_sensitivity": "layers",
}
TOLD = (  # columns of the table that the `result` event has
    *("training", "variant", "variant_key", "bits", "mode", "seed", "epoch", "split", "n", "prec1", "prec5", "loss", "kl"),
    *("delta_prec1", "ci_low", "ci_high", "p_value", "p_holm", "size_bytes", "state"),
)
HISTOGRAMS = "Values of each tensor, the levels of its grid and what lies beyond, as `qexp.analyze task=profile` found them."


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
    if records.empty and jobs.empty:
        allowed = "an experiment with at least one evaluation"
        raise UserError("name", name, allowed=allowed, remedy="Run python -m qexp.train first.")
    runs, exports, sweeps = runs_of(rows), _as_in(records, exports_of(rows)), sweeps_of(rows)
    verdict, made, screen, rounded = None, Made(), [], []  # screen: texts below each other
    if not records.empty:
        protocols = find_protocols(records, {key: run["params"] for key, run in runs.items()})
        if protocols.sentences and not mixed and not protocols.files:
            raise MixedProtocolsError(name, protocols)
        records = with_statistics(records, stored := load_predictions(records, runs_dir))
        table = summarize(records, variant_states(jobs), asked.metrics)
        verdict = compare_variants(table, records, stored, asked.metrics)
        verdict, made = make_asked(verdict, check_asked((*asked.more, *wanted)), stored, asked.class_names)
        compact = write_compact(folder, (verdict.table, verdict.early), stored)
        gaps, digest = (*verdict.gaps, *prec5_of_few(len(asked.class_names))), compact[1] if compact else ""
        verdict = replace(verdict, digest=digest, protocols=protocols.sentences, gaps=gaps)
        rounded = [display(verdict.table, wide=True, metrics=verdict.metrics).table]
        rounded += [seeds_display(verdict.seeds, verdict.table, verdict.metrics)] if len(verdict.seeds) else []
        screen = _screen(verdict, rounded)
    tables = [*write_tables(name, records, folder, verdict, sweeps, jobs).values()]
    tables += [*write_exports(name, exports, folder), *write_asked(folder, made)]
    screen += [*([] if jobs.empty else [format_jobs(jobs)]), *([format_exports(exports)] if exports else [])]
    drawn = _draw(records, exports, made, folder, PAPER if pdf else KINDS, titles) if figures else {}
    _remove_others(folder, set(chain(*drawn.values())))
    if verdict is not None:
        tables += [*([folder / FILE] if verdict.digest else []), *write_plans(plans := plans_of(runs, verdict.table), folder)]
        card, on_page = protocol_card(verdict.table, runs, plans, sweeps), _on_page(drawn, made, folder)
        more, shown = asked_for_page(made.tables), exports_for_page(exports)
        tables.append(write_page(name, folder, verdict, card=card, figures=on_page, more=more, exports=shown, sweeps=sweeps))
    page, files = tables[-1] if verdict is not None else None, (tuple(tables), tuple(chain(*drawn.values())))
    return Report(name, folder, "\n\n".join(screen), *files, tuple(rounded), _places(page, Path(results_dir)), _rows(verdict))


def _as_in(records: pd.DataFrame, exports: Sequence[ExportRow]) -> list[ExportRow]:
    """Exported networks, those with a typed label called as the table calls them."""
    named = records[["run", "named"]].itertuples(index=False) if len(records) else ()
    typed = {run: label.text for run, label in named if label.given}
    return [row | {"variant": typed.get(row["run"], row["variant"])} for row in exports]


def _rows(verdict: Verdict | None) -> tuple[dict[str, object], ...]:
    """What the `result` event has of the table."""
    if verdict is None:
        return ()
    return tuple(verdict.table[[column for column in TOLD if column in verdict.table]].to_dict("records"))


def _screen(verdict: Verdict, rounded: Sequence[Table]) -> list[str]:
    """The table of means, that of results and the sentences, as texts for the screen."""
    words = [textwrap.fill(text, 130) for text in (*verdict.protocols, *verdict.sentences, *verdict.gaps)]
    means = ["\n".join([means_title(verdict.seeds), "", *lines(table, rule=True)]) for table in rounded[1:]]
    return [*means, format_table(verdict.table, verdict.metrics), *(["\n".join(words)] if words else [])]


def _places(page: Path | None, results_dir: Path) -> tuple[str, ...]:
    """Write the index; lines that name it and the page, or why there is no index: the report is there all the same."""
    try:
        index = f"index: {write_index(results_dir)}"
    except OSError as error:
        index = f"no index: {error}"
    return (index,) if page is None else (f"page: {page}", index)


def _remove_others(folder: Path, drawn: Collection[Path]) -> None:
    """Take away the figures of an earlier report that are not drawn now: they show other numbers."""
    for path in (folder / "figures").glob("*.*"):
        if path not in drawn and _figure_of(path.stem) in {*CAPTIONS, *IN_REPORTS}:
            path.unlink(missing_ok=True)


def _figure_of(stem: str) -> str:
    """The figure that a file is a page of: `prec1_by_variant` of `prec1_by_variant_2`."""
    return re.sub(r"_\d+$", "", stem)


def _titled(stem: str, caption: tuple[str, str]) -> tuple[str, str]:
    """A page's title and caption; those of further pages are numbered."""
    number = stem.removeprefix(_figure_of(stem)).removeprefix("_")
    return (f"{caption[0]}, page {number}", caption[1]) if number else caption


def _on_page(drawn: Mapping[str, Sequence[Path]], made: Made, folder: Path) -> list[Drawn]:
    """What the page shows of figures and of histograms that profiles left in the folder."""
    captions = CAPTIONS | {row.name: (row.title, row.summary) for row in made.matrices}
    titled = {stem: _titled(stem, captions[_figure_of(stem)]) for stem in drawn}
    figures = [Drawn(paths[-1], *titled[stem], SECTIONS.get(stem, "results")) for stem, paths in drawn.items()]
    sheets = histogram_sheets(folder)
    return figures + [Drawn(path, f"Histograms: {label}", HISTOGRAMS, "layers", folded=True) for label, path in sheets]


def _variant_pages(records: pd.DataFrame) -> dict[str, Figure]:
    """The figures of all variants by stem: a second page is `prec1_by_variant_2`."""
    pages: dict[str, Figure] = {}
    while (figure := prec1_by_variant(records, len(pages) + 1)) is not None:
        pages["prec1_by_variant" + (f"_{len(pages) + 1}" if pages else "")] = figure
    return pages


def _draw(
    records: pd.DataFrame, exports: Sequence[ExportRow], made: Made, folder: Path, kinds: Sequence[str], titled: bool
) -> dict[str, list[Path]]:
    """Draw the figures; returns their files by stem, none where nothing was evaluated.

    Args:
        records: of `load_records`.
        exports: of `load_exports`.
        made: the matrices that were asked for.
        folder: of the report, where analyses of the layers lie.
        kinds: of files, SVG last.
        titled: figures have headings.
    """
    if records.empty:
        return {}
    by_epoch = prec1_by_epoch(records) if records.groupby("training")["epoch"].nunique().max() > 1 else None
    drawn: dict[str, Figure | None] = {
        "prec1_by_epoch": by_epoch,
        "loss_by_epoch": loss_by_epoch(records),
        "prec1_by_bits": prec1_by_bits(records),
    }
    drawn |= _variant_pages(records)
    drawn |= {"prec1_by_size": prec1_by_size(records), "prec1_by_cost": prec1_by_cost(exports)}
    layers = load_layers(folder)
    drawn |= {
        "prec1_by_bops": prec1_by_bops(exports),
        "weight_sqnr": sqnr_map(layers),
        "layer_sensitivity": sensitivity_map(layers),
    }
    drawn |= {row.name: draw_matrix(matrix) for row, matrix in made.matrices.items()}
    wanted = {stem: figure for stem, figure in drawn.items() if figure is not None}
    return {
        stem: save(figure, folder / "figures" / stem, kinds, titled=titled) for stem, figure in track(wanted.items(), "figure")
    }
