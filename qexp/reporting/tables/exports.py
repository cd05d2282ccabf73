"""Exported networks: the ladder from the float network to each runtime, what running them costs, and the work of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qexp.base.files import write_text_atomic
from qexp.reporting.tables.render import MIB, Column, Row, csv_text, filled, fixed_width, markdown_table, size_text
from qexp.tracking.journal import find_journal, read_rows

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
_COST = (
    "*fp32* is the same network in float in the same runtime, its batch norm folded likewise. Latency is of one call: the median "
    "with the 10th and the 90th percentile; *memory* is what a process needs above one that only imported the runtime."
)


def load_exports(name: str, runs_dir: str | Path) -> list[dict[str, Any]]:
    """The exported networks of an experiment, as last measured, in the order of their first measurement."""
    rows = [row for row in read_rows(find_journal(runs_dir, name))[0] if row["kind"] == "export"]
    return list({(row["run"], row["key"]): row for row in rows}.values())


def write_exports(name: str, exports: Sequence[Row], folder: Path) -> list[Path]:
    """Write `ladder.csv`, `cost.csv`, `layers.csv` and `ladder.md`; removes those that have nothing to tell. Returns the files.

    Args:
        name: experiment.
        exports: of `load_exports`.
        folder: `results/<name>`.
    """
    texts = dict(zip(FILES, (_flat_csv(exports, kind) for kind in ("rungs", "cost", "layers")), strict=False))
    texts["ladder.md"] = markdown(name, exports) if exports else ""
    for file, text in texts.items():
        if text:
            write_text_atomic(folder / file, text)
        else:
            (folder / file).unlink(missing_ok=True)
    return [folder / file for file, text in texts.items() if text]


def format_exports(exports: Sequence[Row]) -> str:
    """The ladders and costs as fixed-width text, for the screen."""
    return "\n\n".join(_screen(each) for each in exports)


def shown_on_page(exports: Sequence[Row]) -> list[dict[str, Any]]:
    """Each network's ladder, and what running it costs, for the template of `report.html`."""
    return [
        {
            "title": each["variant"],
            "caption": _caption(each),
            "alarms": each["alarms"],
            "notes": each["notes"],
            "tables": [
                {"header": header, "rows": cells}
                for header, cells in (filled(_LADDER, each["rungs"]), filled(_COSTS, _with_speedup(each["cost"])))
                if cells
            ],
        }
        for each in exports
    ]


def markdown(name: str, exports: Sequence[Row]) -> str:
    """The whole of `ladder.md`."""
    parts = [f"# {name}: exported networks"]
    for each in exports:
        parts += [
            f"## {each['variant']}",
            _caption(each) + f". `{each['file']}`",
            markdown_table(*filled(_LADDER, each["rungs"])),
        ]
        if notes := [*(f"ALARM: {text}" for text in each["alarms"]), *each["notes"]]:
            parts.append("  \n".join(notes))
        if each["cost"]:
            parts.append(markdown_table(*filled(_COSTS, _with_speedup(each["cost"]))))
    parts.append(EXPLAINED)
    if any(each["cost"] for each in exports):
        parts.append(_COST)
    return "\n\n".join(parts) + "\n"


def _screen(each: Row) -> str:
    lines = [f"{each['variant']}: {_caption(each)}", "", *_screen_table(_LADDER, each["rungs"])]
    lines += [f"ALARM: {text}" for text in each["alarms"]]
    lines += [f"note: {text}" for text in each["notes"]]
    lines += ["", *_screen_table(_COSTS, _with_speedup(each["cost"]))] if each["cost"] else []
    return "\n".join([*lines, f"file: {each['file']}"])


def _screen_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    header, cells = filled(columns, rows)
    return fixed_width([[title for title, _ in header], *cells], [bool(left) for _, left in header], rule=True)


def _caption(each: Row) -> str:
    """`n = 500 (test), simulate exact, 1 thread; file 0.29 MiB, fp32 1.04 MiB (3.63 times), ...`."""
    sizes, threads = each["sizes"], f"{each['threads']} thread{'' if each['threads'] == 1 else 's'}"
    parts = [f"n = {each['n']} ({each['split']}), simulate {each['simulate']}, {threads}", f"file {size_text(sizes['file'])}"]
    if sizes["file"] != sizes["fp32"]:
        ratio = sizes["fp32"] / sizes["file"]
        parts[-1] += f", fp32 {size_text(sizes['fp32'])} ({ratio:.2f} times), packed state dict {size_text(sizes['packed'])}"
    macs, bops = (sum(layer[key] for layer in each["layers"]) for key in ("macs", "bops"))
    parts.append(f"{macs / 1e6:.4g} million MACs and {bops / 1e9:.4g} billion bit operations an image")
    return "; ".join(parts)


def _number(key: str, form: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else "exact" if row[key] == math.inf else format(row[key], form)


def _first(row: Row) -> str:
    return row.get("first_difference") or ""


def _passed(row: Row) -> str:
    """`pass`, or the first layer that fails."""
    return {True: "pass", False: f"FAIL {row.get('failed_layer')}", None: ""}[row.get("passed")]


def _share(row: Row) -> str:
    return f"{100 * row['agreement']:.2f}"


_LADDER: tuple[Column, ...] = (
    ("rung", True, lambda row: row["name"]),
    ("version", True, lambda row: row.get("version") or ""),
    ("n", False, _number("n", "d")),
    ("Prec@1", False, _number("prec1", ".2f")),
    ("Prec@5", False, _number("prec5", ".2f")),
    ("equal %", False, _share),
    ("SQNR dB", False, _number("logit_sqnr_db", ".1f")),
    ("compared", False, lambda row: str(row.get("n_codes") or "")),
    ("steps", False, _number("max_steps", "d")),
    ("parts at", True, _first),
    ("layers", True, _passed),
    ("note", True, lambda row: row.get("note") or ""),
)
_COSTS: tuple[Column, ...] = (
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


def _with_speedup(cost: Sequence[Row]) -> list[dict[str, Any]]:
    """Each line with how many times as fast as the float network in the same runtime it is."""
    plain = {(row["runtime"], row["batch"]): row["median_ms"] for row in cost if row["network"] == "fp32"}
    found = []
    for row in cost:
        base = plain.get((row["runtime"], row["batch"])) if row["network"] != "fp32" else None
        found.append({**row, "speedup": None if base is None else base / row["median_ms"]})
    return found


def _flat_csv(exports: Sequence[Row], kind: str) -> str:
    """One line per rung, timing or layer of all networks; nothing where there are no lines."""

    def lines() -> Iterator[dict[str, Any]]:
        for each in exports:
            for item in _with_speedup(each[kind]) if kind == "cost" else each[kind]:
                sizes = {f"{name}_bytes": size for name, size in each["sizes"].items()} if kind == "cost" else {}
                yield {key: each[key] for key in _SHARED} | dict(item) | sizes

    frame = pd.DataFrame(list(lines()))
    return "" if frame.empty else csv_text(frame)
