"""Tables: numbers for programs (CSV), and rounded for people (Markdown and the screen)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qexp.base.files import write_texts
from qexp.base.table import Table, latex_table, lines, markdown_table, markdown_text
from qexp.base.text import MIB
from qexp.config.metrics import ALWAYS, MetricInfo
from qexp.reporting.frames.comparison import has_qat
from qexp.reporting.frames.names import shared_words
from qexp.reporting.frames.repeats import one_of_each
from qexp.reporting.frames.summary import CONTROL, is_control, is_float, widths_of
from qexp.reporting.statistics.draws import EXPLAINED as DRAWS_EXPLAINED
from qexp.reporting.statistics.draws import FILE as DRAWS_FILE
from qexp.reporting.statistics.verdict import EXPLAINED, Verdict
from qexp.reporting.tables.columns import DESCRIBING, GRID, Filled, rounded_column
from qexp.reporting.tables.metric_cells import is_accuracy, metric_cells
from qexp.reporting.tables.render import Display, csv_text, numbers_text
from qexp.reporting.tables.repeated import MEANS, repeats_title, seeds_display
from qexp.reporting.tables.statistic_cells import seeds_explained, statistics
from qexp.tracking.row_types import SweepRow

JOBS_TABLE = "jobs.csv"
VS_CONTROL = (
    "vs control in points against the float control: trained in float from the same weights with the same recipe and seed, "
    "after the same epoch"
)
LABELLED = {"policy": "", "quant": "", "granularity": "", "input_quant": "input_"}  # `GRID`, as labels have its values
ACROSS_DELTA = "of a copy against the float network of its protocol, of a float network against that of protocol A"


def write_tables(
    name: str,
    records: pd.DataFrame,
    folder: Path,
    verdict: Verdict | None,
    sweeps: Sequence[SweepRow] = (),
    jobs: pd.DataFrame | None = None,
) -> dict[str, Path]:
    """Write `table.csv`, `epochs.csv`, `table.md` and `table.tex`; `seeds.csv` where seeds were repeated, `jobs.csv` of jobs.

    `pairs.csv` compares any two rows. Tables of evaluations are written where there is one. Returns the files by name.

    Args:
        name: experiment.
        records: of `load_records`.
        folder: `results/<name>`.
        verdict: of `compare_variants`; None where nothing was evaluated.
        sweeps: of `load_sweeps`; commands, versions and revisions for `table.md`.
        jobs: of `load_jobs`.
    """
    texts = {"seeds.csv": "", "pairs.csv": "", DRAWS_FILE: ""} | (
        {} if jobs is None or jobs.empty else {JOBS_TABLE: csv_text(jobs)}
    )
    texts |= {} if verdict is None else _texts(name, records, sweeps, verdict)
    return {path.name: path for path in write_texts(folder, texts)}


def _texts(name: str, records: pd.DataFrame, sweeps: Sequence[SweepRow], verdict: Verdict) -> dict[str, str]:
    """The files made of evaluations, by name; a table without rows has no text."""
    versions = [tuple(versions.items()) for versions in records["versions"]]
    texts_of = {items: " ".join(f"{name}={text}" for name, text in items) for items in dict.fromkeys(versions)}
    epochs = records.assign(versions=[texts_of[items] for items in versions])
    words = (*verdict.sentences, *verdict.gaps, *_stored(verdict))
    text = markdown(name, verdict.table, verdict.seeds, sweeps, words, verdict.warnings, verdict.metrics)
    texts = {"table.csv": csv_text(_flat(verdict.table)), "epochs.csv": csv_text(_flat(epochs)), "table.md": text}
    texts["table.tex"] = latex(name, display(verdict.table, metrics=verdict.metrics), verdict.warnings)
    more = {"pairs.csv": verdict.pairs, "seeds.csv": verdict.seeds, DRAWS_FILE: verdict.draws}
    return texts | {file: csv_text(frame) if len(frame) else "" for file, frame in more.items()}


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame as CSV holds it: alarms and notes as one text each, nothing twice."""
    joined = {column: frame[column].map("; ".join) for column in ("alarms", "notes") if column in frame}
    return frame.assign(**joined).drop(columns=["named", "trained_with"], errors="ignore")


def _stored(verdict: Verdict) -> tuple[str, ...]:
    """Where the predictions of all this are."""
    text = f"`predictions.safetensors` (digest {verdict.digest}) holds the predictions that this was computed from."
    return (text,) if verdict.digest else ()


def format_table(table: pd.DataFrame, metrics: Sequence[MetricInfo] = ALWAYS) -> str:
    """The table as fixed-width text: Prec@k in percent, delta in points, size in MiB, alarms as footnotes.

    Args:
        table: of `summarize`.
        metrics: that it has.
    """
    rounded = display(table, metrics=metrics)
    body = [rounded.caption, "", *lines(rounded.table, rule=True)]
    return "\n".join([*body, *([""] if rounded.footnotes else []), *rounded.footnotes])


def markdown(
    name: str, table: pd.DataFrame, seeds: pd.DataFrame, sweeps: Sequence[SweepRow] = (), words: Sequence[str] = (),
    protocols: Sequence[str] = (), metrics: Sequence[MetricInfo] = ALWAYS,
) -> str:  # fmt: skip
    """The whole of `table.md`.

    Args:
        name: experiment.
        table: of `summarize`.
        seeds: of `seed_table`.
        sweeps: of `load_sweeps`.
        words: sentences of a verdict.
        protocols: of `Protocols`, where there are several.
        metrics: that the table has.
    """
    rounded = display(table, wide=True, metrics=metrics)
    parts = [f"# {name}", *(["  \n".join(protocols)] if protocols else [])]
    parts += [rounded.caption + ".", markdown_table(rounded.table)]
    if rounded.footnotes:
        parts.append("  \n".join(rounded.footnotes))
    parts.append(" ".join([_explained(table), *(row.explained for row in metrics if not row.always)]))
    if words:
        parts += ["## Which differences are real", "\n".join(f"- {sentence}" for sentence in words)]
        parts += [EXPLAINED] if table["p_value"].notna().any() else []
    if len(seeds):
        parts += [f"## {repeats_title(seeds)}", MEANS + seeds_explained(seeds)]
        parts += [DRAWS_EXPLAINED] if "num_draws" in seeds else []
        parts.append(markdown_table(seeds_display(seeds, table, metrics)))
    if sweeps:
        parts += ["## How this was made", "\n".join(_sweep_line(sweep) for sweep in sweeps)]
    return markdown_text(parts)


def latex(name: str, rounded: Display, protocols: Sequence[str] = ()) -> str:
    """The whole of `table.tex`: a `tabular` with the rules of booktabs, what all rows share and the footnotes as comments.

    Args:
        name: experiment.
        rounded: of `display`.
        protocols: what the letters of mixed protocols stand for.
    """
    comments = [f"{name}: {rounded.caption}; \\usepackage{{booktabs}}", *protocols, *rounded.footnotes]
    return "\n".join([*(f"% {line}" for text in comments for line in text.splitlines()), latex_table(rounded.table)]) + "\n"


def _explained(table: pd.DataFrame) -> str:
    """What the numbers are."""
    if "files" in table:
        return f"Prec@1 and Prec@5 in percent; delta in points of Prec@1 {ACROSS_DELTA}."
    if not has_qat(table):
        return "Prec@1 and Prec@5 in percent; delta in points of Prec@1 against the float network of the same epoch."
    against = "the float network that a quantization-aware training began from, and of others against that of the same epoch"
    text = f"Prec@1 and Prec@5 in percent; delta in points of Prec@1 against {against}."
    return f"{text} {VS_CONTROL}." if table["vs_control"].notna().any() else text


def display(table: pd.DataFrame, *, wide: bool = False, metrics: Sequence[MetricInfo] = ALWAYS) -> Display:
    """Choose columns, round, and number the footnotes; `wide` for those that a screen has no room for.

    Accuracies of every evaluation come first and their statistics behind them, then the other metrics.

    Args:
        table: of `summarize`.
        wide: see above.
        metrics: that it has.
    """
    table = one_of_each(table)
    variants = table[~is_float(table)]
    marks, footnotes = _footnotes(table)
    shared: list[str] = [f"{row.data}, {row.model}" for row in table[["data", "model"]].drop_duplicates().itertuples()]
    words = shared_words(table)
    names = [label.without(words).text for label in table["named"]]
    columns: list[Filled] = []

    def add(name: str, values: Sequence[object]) -> None:
        columns.append((DESCRIBING[name], values))

    if "protocol" in table:
        add("protocol", list(table["protocol"]))
    several = table["training"].nunique() > 1
    if several:
        add("label", list(table["label"]))
    add("variant", [f"{name} {mark}".strip() for name, mark in zip(names, marks, strict=True)])
    add("bits", widths_of(table))
    add("mode", _modes(table))
    gridded = variants[variants["mode"] != "half"] if (variants["mode"] != "half").any() else variants
    for name in GRID:
        _split_or_share(gridded, table, name, columns, shared, blank_float=True)
    if "engine" in table and table["engine"].any():
        _split_or_share(table, table, "engine", columns, shared)
    # The start from a file, which all seeds share, has no seed in its label.
    seed_in_label = several and (table["label"] != table["group"]).any()
    for name in ("split", "n", "epoch") if seed_in_label else ("split", "n", "seed", "epoch"):
        _split_or_share(table, table, name, columns, shared)
    if (table["state"] != "done").any():
        add("state", list(table["state"]))
    size = (table["size_bytes"] / MIB).map(f"{{:.{2 if table['size_bytes'].max() >= 10 * MIB else 3}f}}".format)
    first = [row for row in metrics if is_accuracy(row)]
    for title, cells in (
        *(metric_cells(table, row) for row in first),
        ("vs control", numbers_text(table["vs_control"], "{:+.2f}".format) if has_qat(table) else [""] * len(table)),
        *statistics(table, wide=wide),
        *(metric_cells(table, row) for row in metrics if row not in first),
        ("MiB", list(size)),
    ):
        columns.append(rounded_column(title, cells))
    told = {f"{before}{value}" for name, before in LABELLED.items() for value in gridded[name].unique()}
    rest = [word for word in words if word not in told]  # the scheme that all have is said by now, or in its column
    shared += [f"all copies {' '.join(rest)}"] if rest else []
    return Display(", ".join(shared), Table.of_values(columns), tuple(footnotes))


def _split_or_share(
    looked_at: pd.DataFrame,
    table: pd.DataFrame,
    name: str,
    columns: list[Filled],
    shared: list[str],
    *,
    blank_float: bool = False,
) -> None:
    """Add a column where rows differ in it, a part of the caption where they do not.

    Args:
        looked_at: the rows that are compared.
        table: all rows.
        name: of the column.
        columns: what is added to.
        shared: parts of the caption, what is added to otherwise.
        blank_float: leave the float network's cell empty.
    """
    column, values = DESCRIBING[name], list(dict.fromkeys(looked_at[name]))
    if len(values) > 1:
        blank = is_float(table) if blank_float else [False] * len(table)
        columns.append((column, [None if empty else value for empty, value in zip(blank, table[name], strict=True)]))
    elif values and not (name == "input_quant" and values[0] == "none"):
        shared.append(f"{column.title} {values[0]}" if name != "n" else f"n = {values[0]}")


def _modes(table: pd.DataFrame) -> list[str]:
    """The mode; controls are called so, and the float network has none."""
    marked = table["mode"].mask(is_control(table), "float (control)")
    return list(marked.mask(is_float(table), ""))


def _footnotes(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """A mark per row, and the texts: `[1] ALARM: ...` for alarms, `[2] ...` for notes; equal texts share a number."""
    numbers: dict[str, int] = {}
    marks = []
    for alarms, notes in zip(table["alarms"], table["notes"], strict=True):
        texts = [f"ALARM: {alarm}" for alarm in alarms]
        # That a control is one is said in its mode.
        texts += [note for note in notes if note != CONTROL]
        marks.append("".join(f"[{numbers.setdefault(text, len(numbers) + 1)}]" for text in texts))
    return marks, [f"[{number}] {text}" for text, number in numbers.items()]


def _sweep_line(sweep: SweepRow) -> str:
    """One sweep: command, revision, versions, machine."""
    versions = ", ".join(f"{key} {value}" for key, value in sweep["versions"].items())
    when = pd.Timestamp(sweep["time_ms"], unit="ms").strftime("%Y-%m-%d %H:%M UTC")
    revision = f", revision {sweep['git']}" if sweep.get("git") else ""
    return f"- `{sweep['command']}` ({when}, {sweep['host']}{revision}; {versions})"
