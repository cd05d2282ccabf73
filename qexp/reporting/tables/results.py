"""Tables: numbers for programs (CSV), and rounded for people (Markdown and the screen)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from qexp.base.files import write_text_atomic
from qexp.base.text import MIB
from qexp.config.metrics import ALWAYS, MetricInfo
from qexp.reporting.frames.comparison import has_qat, shared_words, without_words
from qexp.reporting.frames.jobs import variant_states
from qexp.reporting.frames.summary import is_control, is_float, seed_table, summarize
from qexp.reporting.statistics.verdict import EXPLAINED, Verdict
from qexp.reporting.tables.metric_cells import is_accuracy, metric_cells, number_text
from qexp.reporting.tables.render import Display, csv_text, fixed_width, markdown_table, numbers_text
from qexp.reporting.tables.statistic_cells import seed_statistics, seeds_explained, statistics
from qexp.tracking.record import FLOAT_VARIANT
from qexp.tracking.row_types import SweepRow

VS_CONTROL = (
    "vs control in points against the float control: trained in float from the same weights with the same recipe and seed, "
    "after the same epoch"
)


def write_tables(
    name: str,
    records: pd.DataFrame,
    folder: Path,
    sweeps: Sequence[SweepRow] = (),
    jobs: pd.DataFrame | None = None,
    verdict: Verdict | None = None,
) -> dict[str, Path]:
    """Write `table.csv`, `epochs.csv`, `table.md`, and `seeds.csv` where seeds were repeated, `jobs.csv` where jobs are known.

    With a verdict the tables hold its columns, and `pairs.csv` compares any two rows.

    Tables of evaluations are written where there is one. Returns the files by name.

    Args:
        name: experiment.
        records: of `load_records`.
        folder: `results/<name>`.
        sweeps: of `load_sweeps`; commands, versions and revisions for `table.md`.
        jobs: of `load_jobs`.
        verdict: of `compare_variants`.
    """
    texts = {} if jobs is None or jobs.empty else {"jobs.csv": csv_text(jobs)}
    if not records.empty:
        texts |= _texts(name, records, sweeps, {} if jobs is None else variant_states(jobs), verdict)
    for file in {"seeds.csv", "pairs.csv"} - set(texts):
        (folder / file).unlink(missing_ok=True)
    for file, text in texts.items():
        write_text_atomic(folder / file, text)
    return {file: folder / file for file in texts}


def _texts(
    name: str,
    records: pd.DataFrame,
    sweeps: Sequence[SweepRow],
    states: Mapping[tuple[str, str], str],
    verdict: Verdict | None,
) -> dict[str, str]:
    """The files made of evaluations, by name."""
    table = summarize(records, states) if verdict is None else verdict.table
    seeds = seed_table(table) if verdict is None else verdict.seeds
    metrics = ALWAYS if verdict is None else verdict.metrics
    epochs = records.assign(
        alarms=["; ".join(alarms) for alarms in records["alarms"]],
        versions=[" ".join(f"{name}={text}" for name, text in versions.items()) for versions in records["versions"]],
    )
    words = () if verdict is None else (*verdict.sentences, *verdict.gaps, *_stored(verdict))
    text = markdown(name, table, seeds, sweeps, words, () if verdict is None else verdict.protocols, metrics)
    texts = {"table.csv": csv_text(table), "epochs.csv": csv_text(epochs), "table.md": text}
    texts |= {"pairs.csv": csv_text(verdict.pairs)} if verdict is not None and len(verdict.pairs) else {}
    return texts | ({"seeds.csv": csv_text(seeds)} if len(seeds) else {})


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
    body = fixed_width([rounded.header, *rounded.rows], rounded.left, rule=True)
    return "\n".join([rounded.caption, "", *body, *([""] if rounded.footnotes else []), *rounded.footnotes])


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
    parts += [rounded.caption + ".", markdown_table(list(zip(rounded.header, rounded.left, strict=True)), rounded.rows)]
    if rounded.footnotes:
        parts.append("  \n".join(rounded.footnotes))
    parts.append(" ".join([_explained(table), *(row.explained for row in metrics if not row.always)]))
    if words:
        parts += ["## Which differences are real", "\n".join(f"- {sentence}" for sentence in words)]
        parts += [EXPLAINED] if table["p_value"].notna().any() else []
    if len(seeds):
        parts += ["## Repeated seeds", "Mean +- standard deviation (ddof 1)." + seeds_explained(seeds)]
        parts.append(_seeds_markdown(seeds, _shared(table), metrics))
    if sweeps:
        parts += ["## How this was made", "\n".join(_sweep_line(sweep) for sweep in sweeps)]
    return "\n\n".join(parts) + "\n"


def _explained(table: pd.DataFrame) -> str:
    """What the numbers are."""
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
    variants = table[~is_float(table)]
    marks, footnotes = _footnotes(table)
    columns: list[tuple[str, bool, list[str]]] = []
    shared: list[str] = [f"{row.data}, {row.model}" for row in table[["data", "model"]].drop_duplicates().itertuples()]
    words = _shared(table)
    names = [without_words(variant, words) if words else variant for variant in table["variant"]]
    several = table["training"].nunique() > 1
    if "protocol" in table:
        columns.append(("protocol", True, list(table["protocol"])))
    if several:
        columns.append(("training", True, list(table["label"])))
    columns.append(("variant", True, [f"{name} {mark}".strip() for name, mark in zip(names, marks, strict=True)]))
    columns.append(("bits", False, [str(bits) for bits in table["bits"]]))
    columns.append(("mode", True, _modes(table)))
    gridded = variants[variants["mode"] != "half"] if (variants["mode"] != "half").any() else variants
    for column, title in (("policy", "policy"), ("quant", "quant"), ("granularity", "granularity"), ("input_quant", "input")):
        _split_or_share(gridded, table, column, title, columns, shared, blank_float=True)
    # The start from a file, which all seeds share, has none.
    seed_in_label = several and table["label"].str.contains("seed=").any()
    for column in ("split", "n", "epoch") if seed_in_label else ("split", "n", "seed", "epoch"):
        _split_or_share(table, table, column, column, columns, shared)
    if (table["state"] != "done").any():
        columns.append(("state", True, list(table["state"])))
    size = (table["size_bytes"] / MIB).map(f"{{:.{2 if table['size_bytes'].max() >= 10 * MIB else 3}f}}".format)
    first = [row for row in metrics if is_accuracy(row)]
    for title, cells in (
        *(metric_cells(table, row) for row in first),
        ("vs control", numbers_text(table["vs_control"], "{:+.2f}".format) if has_qat(table) else []),
        *statistics(table, wide=wide),
        *(metric_cells(table, row) for row in metrics if row not in first),
        ("MiB", list(size)),
    ):
        if any(cells):
            columns.append((title, False, cells))
    shared += [f"all copies {' '.join(words)}"] if words else []
    return Display(
        ", ".join(shared),
        tuple(title for title, _, _ in columns),
        tuple(zip(*(cells for _, _, cells in columns), strict=True)),
        tuple(left for _, left, _ in columns),
        tuple(footnotes),
    )


def _shared(table: pd.DataFrame) -> list[str]:
    """Words of labels that are said once, in the caption."""
    return shared_words(table) if has_qat(table) else []


def _split_or_share(
    looked_at: pd.DataFrame,
    table: pd.DataFrame,
    column: str,
    title: str,
    columns: list[tuple[str, bool, list[str]]],
    shared: list[str],
    *,
    blank_float: bool = False,
) -> None:
    """Add a column where rows differ in it, a part of the caption where they do not.

    Args:
        looked_at: the rows that are compared.
        table: all rows.
        column: its name in the table.
        title: its name for a reader.
        columns: what is added to.
        shared: parts of the caption, what is added to otherwise.
        blank_float: leave the float network's cell empty.
    """
    values = list(dict.fromkeys(looked_at[column]))
    if len(values) > 1:
        cells = [str(value) for value in table[column]]
        if blank_float:
            cells = ["" if of_float else cell for of_float, cell in zip(is_float(table), cells, strict=True)]
        columns.append((title, isinstance(values[0], str), cells))
    elif values and not (column == "input_quant" and values[0] == "none"):
        shared.append(f"{title} {values[0]}" if column != "n" else f"n = {values[0]}")


def _modes(table: pd.DataFrame) -> list[str]:
    """The mode; controls are called so, and the float network has none."""
    marked = table["mode"].mask(is_control(table), "float (control)")
    return list(marked.mask(is_float(table), ""))


def _footnotes(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """A mark per row, and the texts: `[1] ALARM: ...` for alarms, `[2] ...` for notes; equal texts share a number."""
    numbers: dict[str, int] = {}
    marks = []
    for alarms, notes, control in zip(table["alarms"], table["notes"], is_control(table), strict=True):
        texts = [f"ALARM: {alarm}" for alarm in alarms.split("; ") if alarm]
        # That a control is one is said in its mode.
        texts += [note for note in notes.split("; ") if note and not (control and note.startswith("control"))]
        marks.append("".join(f"[{numbers.setdefault(text, len(numbers) + 1)}]" for text in texts))
    return marks, [f"[{number}] {text}" for text, number in numbers.items()]


def _seeds_markdown(seeds: pd.DataFrame, words: Sequence[str], metrics: Sequence[MetricInfo]) -> str:
    """The means as a Markdown table; a loss, which tells little beside an accuracy, is in `seeds.csv`."""
    gridded = seeds[~is_float(seeds) & (seeds["mode"] != "half")]
    differing = [column for column in ("policy", "quant", "granularity", "input_quant") if gridded[column].nunique() > 1]
    groups = ["group"] if seeds["group"].nunique() > 1 else []
    texts = [*groups, "variant", "bits", "mode", *differing, "num_seeds"]
    titles = {"group": "training", "num_seeds": "seeds", "input_quant": "input"}
    first = {row.name: row.title for row in metrics if is_accuracy(row)}
    own = {row.name: row for row in metrics if not row.always}
    titles_of = first | {"vs_control": "vs control"} | {name: row.title for name, row in own.items()}
    numbers = {name: title for name, title in titles_of.items() if f"{name}_mean" in seeds}
    statistic_columns = seed_statistics(seeds)
    header = [titles.get(column, column) for column in texts] + list(numbers.values()) + [title for title, _ in statistic_columns]
    rows = []
    if words:
        seeds = seeds.assign(variant=[without_words(variant, words) for variant in seeds["variant"]])
    for number, row in enumerate(seeds.to_dict("records")):
        cells = ["" if column == "mode" and row["variant"] == FLOAT_VARIANT else str(row[column]) for column in texts]
        cells += [_mean_and_sd(row[f"{name}_mean"], row[f"{name}_sd"], own.get(name)) for name in numbers]
        rows.append([*cells, *(column[number] for _, column in statistic_columns)])
    left = [isinstance(seeds[column].iloc[0], str) for column in texts]
    return markdown_table(list(zip(header, [*left, *[False] * (len(header) - len(left))], strict=True)), rows)


def _mean_and_sd(mean: float, sd: float, row: MetricInfo | None) -> str:
    """Two decimals each, or as the metric's row says; nothing where there is no mean."""
    form = "{:.2f}".format if row is None else partial(number_text, row)
    return "" if pd.isna(mean) else f"{form(mean)} +- {form(sd).removeprefix('+')}"


def _sweep_line(sweep: SweepRow) -> str:
    """One sweep: command, revision, versions, machine."""
    versions = ", ".join(f"{key} {value}" for key, value in sweep["versions"].items())
    when = pd.Timestamp(sweep["time_ms"], unit="ms").strftime("%Y-%m-%d %H:%M UTC")
    revision = f", revision {sweep['git']}" if sweep.get("git") else ""
    return f"- `{sweep['command']}` ({when}, {sweep['host']}{revision}; {versions})"
