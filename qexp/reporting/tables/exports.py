"""Exported networks: fidelity stages from the float network to each runtime, the cost of running, and the work of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from qexp.base.files import write_text_atomic
from qexp.base.text import MIB
from qexp.reporting.tables.render import Column, Row, csv_text, filled, fixed_width, markdown_table, size_text
from qexp.tracking.journal import find_journal, read_rows
from qexp.tracking.record import FLOAT_VARIANT
from qexp.tracking.row_types import ExportRow, TimingRow, is_export

_SHARED = ("variant", "training", "run", "split", "simulate", "requantization", "threads", "cpu")
FILES = ("ladder.csv", "cost.csv", "layers.csv", "ladder.md")
EXPLAINED = (
    "Each rung is compared with the simulation: *equal* is the share of images whose first prediction is the simulation's, "
    "*SQNR* the signal to noise of its logits, 10 log10(sum ref^2 / sum (ref - this)^2), *steps* the largest difference of a "
    "code from the simulation's over all places and the images compared, *parts at* the first place, in order of execution, "
    "where it is more than one. *layers* passes where each layer, fed the codes that this very rung fed it, gives the codes "
    "that integers give, within one step; else it names the first that does not. *evaluated* is the copy as `qexp.evaluate` "
    "scores it, with float biases, where the simulation has those of the file. Prec@1 and Prec@5 in percent."
)
_COST_EXPLAINED = (
    "*fp32* is the same network in float in the same runtime, its batch norm folded likewise. Latency is of one call: the median "
    "with the 10th and the 90th percentile; *memory* is what a process needs above one that only imported the runtime."
)


def load_exports(name: str, runs_dir: str | Path) -> list[ExportRow]:
    """The exported networks of an experiment, as last measured, in the order of their first measurement."""
    rows = [row for row in read_rows(find_journal(runs_dir, name))[0] if is_export(row)]
    return list({(row["run"], row["key"]): row for row in rows}.values())


def write_exports(name: str, exports: Sequence[ExportRow], folder: Path) -> list[Path]:
    """Write `ladder.csv`, `cost.csv`, `layers.csv` and `ladder.md`; removes those that would be empty. Returns the files.

    Args:
        name: experiment.
        exports: of `load_exports`.
        folder: `results/<name>`.
    """
    csv_texts = (_flat_csv(exports, "rungs"), _flat_csv(exports, "cost"), _flat_csv(exports, "layers"))
    texts = dict(zip(FILES, csv_texts, strict=False))
    texts["ladder.md"] = markdown(name, exports) if exports else ""
    for file, text in texts.items():
        if text:
            write_text_atomic(folder / file, text)
        else:
            (folder / file).unlink(missing_ok=True)
    return [folder / file for file, text in texts.items() if text]


def format_exports(exports: Sequence[ExportRow]) -> str:
    """Fidelity stages and costs as fixed-width text, for the screen."""
    return "\n\n".join(_screen(export) for export in exports)


def exports_for_page(exports: Sequence[ExportRow]) -> list[dict[str, object]]:
    """The fidelity stages of each network, and what running it costs, for the template of `report.html`."""
    return [
        {
            "title": export["variant"],
            "caption": _caption(export),
            "alarms": export["alarms"],
            "notes": export["notes"],
            "tables": [
                {"header": header, "rows": cells}
                for header, cells in (
                    filled(_STAGE_COLUMNS, export["rungs"]),
                    filled(_COST_COLUMNS, _with_speedup(export["cost"])),
                )
                if cells
            ],
        }
        for export in exports
    ]


def markdown(name: str, exports: Sequence[ExportRow]) -> str:
    """The whole of `ladder.md`."""
    parts = [f"# {name}: exported networks"]
    for export in exports:
        parts += [
            f"## {export['variant']}",
            _caption(export) + f". `{export['file']}`",
            markdown_table(*filled(_STAGE_COLUMNS, export["rungs"])),
        ]
        if notes := [*(f"ALARM: {text}" for text in export["alarms"]), *export["notes"]]:
            parts.append("  \n".join(notes))
        if export["cost"]:
            parts.append(markdown_table(*filled(_COST_COLUMNS, _with_speedup(export["cost"]))))
    parts.append(EXPLAINED)
    if any(export["cost"] for export in exports):
        parts.append(_COST_EXPLAINED)
    return "\n\n".join(parts) + "\n"


def _screen(export: ExportRow) -> str:
    lines = [f"{export['variant']}: {_caption(export)}", "", *_screen_table(_STAGE_COLUMNS, export["rungs"])]
    lines += [f"ALARM: {text}" for text in export["alarms"]]
    lines += [f"note: {text}" for text in export["notes"]]
    lines += ["", *_screen_table(_COST_COLUMNS, _with_speedup(export["cost"]))] if export["cost"] else []
    return "\n".join([*lines, f"file: {export['file']}"])


def _screen_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    header, cells = filled(columns, rows)
    return fixed_width([[title for title, _ in header], *cells], [bool(left) for _, left in header], rule=True)


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
    macs, bops = (sum(layer[key] for layer in export["layers"]) for key in ("macs", "bops"))
    parts.append(f"{macs / 1e6:.4g} million MACs and {bops / 1e9:.4g} billion bit operations an image")
    return "; ".join(parts)


def _number(key: str, form: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else "exact" if row[key] == math.inf else format(row[key], form)


def _first_difference(row: Row) -> str:
    return row.get("first_difference") or ""


def _passed(row: Row) -> str:
    """`pass`, or the first layer that fails."""
    return {True: "pass", False: f"FAIL {row.get('failed_layer')}", None: ""}[row.get("passed")]


def _agreement(row: Row) -> str:
    return f"{100 * row['agreement']:.2f}"


_STAGE_COLUMNS: tuple[Column, ...] = (
    ("rung", True, lambda row: row["name"]),
    ("version", True, lambda row: row.get("version") or ""),
    ("n", False, _number("n", "d")),
    ("Prec@1", False, _number("prec1", ".2f")),
    ("Prec@5", False, _number("prec5", ".2f")),
    ("equal %", False, _agreement),
    ("SQNR dB", False, _number("logit_sqnr_db", ".1f")),
    ("compared", False, lambda row: str(row.get("n_codes") or "")),
    ("steps", False, _number("max_steps", "d")),
    ("parts at", True, _first_difference),
    ("layers", True, _passed),
    ("note", True, lambda row: row.get("note") or ""),
)
_COST_COLUMNS: tuple[Column, ...] = (
    ("runtime", True, lambda row: row["runtime"]),
    ("network", True, lambda row: row["network"]),
    ("batch", False, _number("batch", "d")),
    ("median ms", False, _number("median_ms", ".3f")),
    ("10 %", False, _number("low_ms", ".3f")),
    ("90 %", False, _number("high_ms", ".3f")),
    ("images/s", False, _number("images_per_s", ".1f")),
    ("times fp32", False, _number("speedup", ".2f")),
    ("memory MiB", False, lambda row: "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / MIB:.1f}"),
)


def _with_speedup(cost: Sequence[TimingRow]) -> list[dict[str, object]]:
    """Each timing with how many times as fast as the float network in the same runtime it is."""
    of_float = {(row["runtime"], row["batch"]): row["median_ms"] for row in cost if row["network"] == FLOAT_VARIANT}
    lines = []
    for row in cost:
        base = of_float.get((row["runtime"], row["batch"])) if row["network"] != FLOAT_VARIANT else None
        lines.append({**row, "speedup": None if base is None else base / row["median_ms"]})
    return lines


def _flat_csv(exports: Sequence[ExportRow], part: Literal["rungs", "cost", "layers"]) -> str:
    """One line per fidelity stage, timing or layer of all networks; nothing where there are no lines."""

    def lines() -> Iterator[dict[str, object]]:
        for export in exports:
            values: Mapping[str, object] = export
            shared = {key: values[key] for key in _SHARED}
            sizes = {f"{name}_bytes": size for name, size in export["sizes"].items()}
            if part == "cost":
                yield from ({**shared, **timing, **sizes} for timing in _with_speedup(export["cost"]))
            elif part == "rungs":
                yield from ({**shared, **stage} for stage in export["rungs"])
            else:
                yield from ({**shared, **layer} for layer in export["layers"])

    frame = pd.DataFrame(list(lines()))
    return "" if frame.empty else csv_text(frame)
