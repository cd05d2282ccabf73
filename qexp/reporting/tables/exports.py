"""Exported networks: fidelity stages from the float network to each runtime, the cost of running, and the work of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from qexp.base.files import write_texts
from qexp.base.table import Column, Table, html_table, lines, markdown_table, markdown_text
from qexp.base.text import MIB, size_text
from qexp.reporting.tables.agreement import agreement_sentences
from qexp.reporting.tables.point_steps import POINTS_EXPLAINED, flat, histogram, side_by_side
from qexp.reporting.tables.render import csv_text
from qexp.tracking.journal import experiment_rows
from qexp.tracking.record import FLOAT_VARIANT
from qexp.tracking.row_types import ComparedRow, ExportRow, StageRow, TimingRow, is_export
from qexp.tracking.rows import Row

_SHARED = ("variant", "training", "run", "split", "simulate", "requantization", "threads", "cpu")
FILES = ("stages.csv", "cost.csv", "layers.csv", "points.csv", "compared.csv", "targets.csv", "stages.md")
Part = Literal["rungs", "cost", "layers", "codes", "compared", "targets"]
_PARTS: tuple[Part, ...] = get_args(Part)
_BEFORE = ("ladder.csv", "ladder.md")  # names of the first and the last in earlier versions
EXPLAINED = (
    "Each stage is compared with the simulation: *equal* is the share of images whose first prediction is the simulation's, "
    "*SQNR* the signal to noise of its logits, 10 log10(sum ref^2 / sum (ref - this)^2), *steps* the largest difference of a "
    "code from the simulation's over all places and the images compared, *parts at* the first place, in order of execution, "
    "where it is more than one. *layers* passes where each layer, fed the codes that this very stage fed it, gives the codes "
    "that integers give, within one step and but for one in a hundred; else it names the first that does not. *in integers* "
    "counts the layers that the stage really ran in integers, of those that the plan has so, and their share of the MACs; where"
    " they are fewer it fails. *evaluated* is the copy as `qexp.evaluate` scores it, with float biases, where the simulation "
    "has those of the file. Prec@1 and Prec@5 in percent."
)
_COST_EXPLAINED = (
    "*fp32* is the same network in float in the same runtime, its batch norm folded likewise. Latency is of one call: the median "
    "with the 10th and the 90th percentile; *memory* is what a process needs above one that only imported the runtime."
)

_COMPARED_EXPLAINED = (
    "Files of other writers on the same images, beside fp32, the simulation and qexp's file in the same runtime. *vs fp32* and "
    "*vs simulated* are differences of Prec@1 in points with their 95 % intervals and the p of an exact McNemar test, each on "
    "its own; *equal* is the share of images with the same first prediction. *in integers* counts convolutions and matrix "
    "products that integer operators compute, in the graph that ONNX Runtime makes of the file or in the TFLite file. "
    "*times fp32* is the speed of a call over qexp's fp32 file in that runtime at the same batch."
)


_TARGETS_EXPLAINED = (
    "Estimates on paper from the TFLite file, of one image; nothing ran on these targets. *flash* is the file, without the "
    "interpreter's code; *arena* the RAM that TFLite Micro's greedy planner gives tensors, without its own structures and what "
    "kernels take for themselves. An Edge TPU takes the operators of a file in order up to the first that it does not support: "
    "*mapped* are those before it, with their share of the MACs. Its compiler wants the number of images fixed at 1."
)
_EXPLAINED: dict[Part, str] = {
    "cost": _COST_EXPLAINED, "compared": _COMPARED_EXPLAINED, "targets": _TARGETS_EXPLAINED, "codes": POINTS_EXPLAINED,
}  # fmt: skip


def load_exports(name: str, runs_dir: str | Path) -> list[ExportRow]:
    """The exported networks of an experiment, as last measured, in the order of their first measurement."""
    return exports_of(experiment_rows(name, runs_dir))


def exports_of(rows: Sequence[Row]) -> list[ExportRow]:
    """The same from the rows of the experiment's journal."""
    return list({(row["run"], row["key"]): row for row in rows if is_export(row)}.values())


def write_exports(name: str, exports: Sequence[ExportRow], folder: Path) -> list[Path]:
    """Write the tables of `FILES`; removes those that would be empty. Returns the files.

    Args:
        name: experiment.
        exports: of `load_exports`.
        folder: `results/<name>`.
    """
    for former in _BEFORE:
        (folder / former).unlink(missing_ok=True)
    tables = [_flat_csv(exports, part) for part in _PARTS]
    return write_texts(folder, dict(zip(FILES, (*tables, markdown(name, exports) if exports else ""), strict=True)))


def format_exports(exports: Sequence[ExportRow]) -> str:
    """Fidelity stages and costs as fixed-width text, for the screen."""
    return "\n\n".join(_screen(export) for export in exports)


def exports_for_page(exports: Sequence[ExportRow]) -> list[dict[str, object]]:
    """The fidelity stages of each network, and what running it costs, for the template of `report.html`."""
    return [
        {
            "title": export["variant"],
            "caption": _caption(export),
            "sentences": [*agreement_sentences(export)],
            "alarms": export["alarms"],
            "notes": export["notes"],
            "tables": [html_table(table) for table in _tables(export) if table.rows],
        }
        for export in exports
    ]


def markdown(name: str, exports: Sequence[ExportRow]) -> str:
    """The whole of `stages.md`."""
    parts = [f"# {name}: exported networks"]
    for export in exports:
        parts += [
            f"## {export['variant']}",
            _caption(export) + f". `{export['file']}`",
            *(f"- {text}" for text in agreement_sentences(export)),
            markdown_table(_stages(export)),
        ]
        if notes := [*(f"ALARM: {text}" for text in export["alarms"]), *export["notes"]]:
            parts.append("  \n".join(notes))
        parts += [markdown_table(table) for table in _tables(export)[1:-1] if table.rows]  # the histogram is long
    explained = [text for part, text in _EXPLAINED.items() if any(export.get(part) for export in exports)]
    return markdown_text([*parts, EXPLAINED, *explained])


def _screen(export: ExportRow) -> str:
    texts = [f"{export['variant']}: {_caption(export)}", *agreement_sentences(export), "", *lines(_stages(export), rule=True)]
    texts += [f"ALARM: {text}" for text in export["alarms"]]
    texts += [f"note: {text}" for text in export["notes"]]
    texts += ["", *lines(_cost(export), rule=True)] if export["cost"] else []
    texts += ["", *lines(_compared(export), rule=True)] if export.get("compared") else []
    texts += ["", *lines(_targets(export), rule=True)] if export.get("targets") else []
    return "\n".join([*texts, f"file: {export['file']}"])


def _caption(export: ExportRow) -> str:
    """`n = 500 (test), simulate exact, 1 thread; file 0.29 MiB, fp32 1.04 MiB (3.63 times), ...`."""
    sizes, threads = export["sizes"], f"{export['threads']} thread{'' if export['threads'] == 1 else 's'}"
    parts = [
        f"n = {export['n']} ({export['split']}), simulate {export['simulate']}, {threads}",
        f"file {size_text(sizes['file'])}",
    ]
    if sizes["file"] != sizes["fp32"]:
        ratio = sizes["fp32"] / sizes["file"]
        parts[-1] += f", fp32 {size_text(sizes['fp32'])} ({ratio:.2f} times), packed state dict {size_text(sizes['packed'])}"
    for name, title in (("tflite", "TFLite"), ("pte", "ExecuTorch")):
        if name in sizes:
            size, fp32 = sizes[name], sizes[f"fp32_{name}"]
            parts[-1] += f", {title} {size_text(size)}"
            parts[-1] += f", fp32 {size_text(fp32)} ({fp32 / size:.2f} times)" if size != fp32 else ""
    macs, bops = (sum(layer[key] for layer in export["layers"]) for key in ("macs", "bops"))
    parts.append(f"{macs / 1e6:.4g} million MACs and {bops / 1e9:.4g} billion bit operations an image")
    return "; ".join(parts)


def _layers(row: StageRow) -> str | None:
    """`pass`, or the first layer that fails."""
    return {True: "pass", False: f"FAIL {row.get('failed_layer') or 'in float'}", None: None}[row.get("passed")]


def _integers(row: StageRow) -> str | None:
    """`5 of 5, 100.0 %`: layers that ran in integers, of those that the plan has so, and their share of the MACs."""
    planned, share = row.get("num_planned"), row.get("integer_macs_pct")
    return f"{row.get('num_integer')} of {planned}, {share:.1f} %" if planned and share is not None else None


_STAGE_COLUMNS = (
    Column(name="name", title="stage", kind="text"),
    Column(name="version", title="version", kind="text", optional=True),
    Column(name="n", title="n", kind="count", optional=True),
    Column(name="prec1", title="Prec@1", kind="percent", optional=True),
    Column(name="prec5", title="Prec@5", kind="percent", optional=True),
    Column(name="agreement", title="equal %", kind="percent", value=lambda row: 100 * row["agreement"]),
    Column(
        name="logit_sqnr_db", title="SQNR dB", kind="number", optional=True,
        form=lambda value: "exact" if value == math.inf else f"{value:.1f}",
    ),
    Column(name="n_codes", title="compared", kind="count", optional=True, value=lambda row: row.get("n_codes") or None),
    Column(name="max_steps", title="steps", kind="count", optional=True),
    Column(name="first_difference", title="parts at", kind="text", optional=True),
    Column(name="num_integer", title="in integers", kind="text", optional=True, value=_integers),
    Column(name="passed", title="layers", kind="text", optional=True, value=_layers),
    Column(name="note", title="note", kind="text", optional=True),
)  # fmt: skip
_COST_COLUMNS = (
    Column(name="runtime", title="runtime", kind="text"),
    Column(name="network", title="network", kind="text"),
    Column(name="batch", title="batch", kind="count"),
    Column(name="median_ms", title="median ms", kind="time"),
    Column(name="low_ms", title="10 %", kind="time", optional=True),
    Column(name="high_ms", title="90 %", kind="time", optional=True),
    Column(name="images_per_s", title="images/s", kind="number", form=".1f", optional=True),
    Column(name="speedup", title="times fp32", kind="number", form=".2f", optional=True),
    Column(name="peak_bytes", title="memory MiB", kind="size", form=lambda size: f"{size / MIB:.1f}", optional=True),
)


def _with_interval(name: Literal["fp32", "simulated"]) -> Callable[[ComparedRow], str | None]:
    """A row -> `-0.12 (-0.40 to +0.16), p 0.44`; None of the network that is the reference."""

    def shown(row: ComparedRow) -> str | None:
        values: Mapping[str, Any] = row
        if values[f"vs_{name}"] is None:
            return None
        low, high, p_value = values[f"vs_{name}_low"], values[f"vs_{name}_high"], values[f"p_{name}"]
        return f"{values[f'vs_{name}']:+.2f} ({low:+.2f} to {high:+.2f}), p {p_value:.2g}"

    return shown


_COMPARED_COLUMNS = (
    Column(name="name", title="network", kind="text"),
    Column(name="runtime", title="runtime", kind="text", optional=True),
    Column(name="takes", title="takes", kind="text", optional=True),
    Column(name="prec1", title="Prec@1", kind="percent"),
    Column(
        name="prec1_ci", title="95 % CI", kind="text",
        value=lambda row: f"{row['prec1_low']:.2f} to {row['prec1_high']:.2f}",
    ),
    Column(name="prec5", title="Prec@5", kind="percent"),
    Column(name="vs_fp32", title="vs fp32", kind="text", value=_with_interval("fp32")),
    Column(name="vs_simulated", title="vs simulated", kind="text", value=_with_interval("simulated")),
    Column(name="equal_fp32", title="equal fp32 %", kind="percent"),
    Column(name="equal_simulated", title="equal simulated %", kind="percent"),
    Column(
        name="num_integer", title="in integers", kind="text", optional=True,
        value=lambda row: None if row["num_layers"] is None else f"{row['num_integer']} of {row['num_layers']}",
    ),
    Column(name="size_bytes", title="size", kind="size", optional=True),
    Column(name="batch", title="batch", kind="count", optional=True),
    Column(name="median_ms", title="median ms", kind="time", optional=True),
    Column(name="times_fp32", title="times fp32", kind="number", form=".2f", optional=True),
    Column(name="note", title="note", kind="text", optional=True, value=lambda row: row["note"] or None),
)  # fmt: skip


_TARGET_COLUMNS = (
    Column(name="target", title="target (estimate)", kind="text"),
    Column(name="prec1", title="Prec@1", kind="percent"),
    Column(name="flash_bytes", title="flash", kind="size", optional=True),
    Column(name="arena_bytes", title="arena", kind="size", optional=True),
    Column(name="num_operators", title="operators", kind="count"),
    Column(name="num_mapped", title="mapped", kind="count", optional=True),
    Column(name="mapped_macs_pct", title="MACs mapped %", kind="percent", optional=True),
    Column(name="first_fallback", title="falls back at", kind="text", optional=True),
    Column(name="reason", title="reason", kind="text", optional=True),
)


def _tables(export: ExportRow) -> tuple[Table, ...]:
    """All of one network, in order."""
    points = export.get("codes", [])
    return _stages(export), _cost(export), _compared(export), _targets(export), side_by_side(points), histogram(points)


def _targets(export: ExportRow) -> Table:
    """What the TFLite file would need of other hardware."""
    return Table.of(_TARGET_COLUMNS, export.get("targets", []))


def _compared(export: ExportRow) -> Table:
    """The files of other writers, and what they are held against."""
    return Table.of(_COMPARED_COLUMNS, export.get("compared", []))


def _stages(export: ExportRow) -> Table:
    """The fidelity stages."""
    return Table.of(_STAGE_COLUMNS, export["rungs"])


def _cost(export: ExportRow) -> Table:
    """What running it costs."""
    return Table.of(_COST_COLUMNS, _with_speedup(export["cost"]))


def _with_speedup(cost: Sequence[TimingRow]) -> list[dict[str, object]]:
    """Each timing with how many times as fast as the float network in the same runtime it is."""
    of_float = {(row["runtime"], row["batch"]): row["median_ms"] for row in cost if row["network"] == FLOAT_VARIANT}
    timings = []
    for row in cost:
        base = of_float.get((row["runtime"], row["batch"])) if row["network"] != FLOAT_VARIANT else None
        timings.append({**row, "speedup": None if base is None else base / row["median_ms"]})
    return timings


def _flat_csv(exports: Sequence[ExportRow], part: Part) -> str:
    """One line per fidelity stage, timing or layer of all networks; nothing where there are no lines."""
    rows = []
    for export in exports:
        values: Mapping[str, object] = export
        shared = {key: values[key] for key in _SHARED}
        if part == "cost":
            sizes = {f"{name}_bytes": size for name, size in export["sizes"].items()}
            rows += [{**shared, **timing, **sizes} for timing in _with_speedup(export["cost"])]
        elif part == "codes":
            rows += [{**shared, **flat(line)} for line in export.get("codes", [])]
        else:
            rows += [{**shared, **line} for line in export.get(part, [])]
    return csv_text(pd.DataFrame(rows)) if rows else ""
