"""The protocol of an experiment on one card: data, network, training, what is quantized and what is not, images, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qexp.base.text import MIB
from qexp.config.model import PRETRAINED
from qexp.config.train import SGD
from qexp.reporting.frames.summary import is_float, widths_of
from qexp.reporting.frames.training_labels import value_text
from qexp.reporting.tables.plans import LabelledPlan
from qexp.tracking.journal import experiment_rows
from qexp.tracking.row_types import RunRow, SweepRow, is_run
from qexp.tracking.rows import Row, Scalar

Runs = Mapping[str, RunRow]
MAX_TEXTS = 4
RECIPE = (
    "epochs", "optimizer", "lr", "momentum", "weight_decay", "schedule", "batch_size", "label_smoothing", "precision",
    "ema_decay", "mixup", "randaugment",
)  # fmt: skip
VARIANT_COLUMNS = (
    ("policy", "policy"), ("quant", "quantizer"), ("granularity", "granularity"), ("activation_scheme", "activations"),
    ("input_quant", "input"), ("ranges", "ranges"), ("corrections", "corrections"),
)  # fmt: skip


def load_runs(name: str, runs_dir: str | Path) -> dict[str, RunRow]:
    """The runs of an experiment by their key, as last opened."""
    return runs_of(experiment_rows(name, runs_dir))


def runs_of(rows: Sequence[Row]) -> dict[str, RunRow]:
    """The same from the rows of the experiment's journal."""
    return {row["run"]: row for row in rows if is_run(row)}


def protocol_card(
    table: pd.DataFrame, runs: Runs, plans: Sequence[LabelledPlan], sweeps: Sequence[SweepRow]
) -> list[tuple[str, str]]:
    """Titles and texts, in the order in which they are asked for.

    Args:
        table: of `summarize`.
        runs: of `load_runs`.
        plans: of `plans_of`.
        sweeps: of `load_sweeps`.
    """
    trainings = [runs[key] for key in dict.fromkeys(table["training"]) if key in runs]
    params = [row["params"] for row in trainings]
    measured, copies = table[["split", "n"]].drop_duplicates(), table[~is_float(table)]
    card = [
        ("Data", _some(f"{row.data} (content {row.data_hash})" for row in table.itertuples())),
        ("Scored on", _some(f"n = {row.n} images of split {row.split}" for row in measured.itertuples())),
        ("Preprocessing", _some(_prepared(values) for values in params)),
        ("Images kept apart", _some(_kept_apart(values) for values in params)),
        ("Network", _some(_network(row, table) for row in params)),
        ("Training", _some(_training(values) for values in params)),
        ("Seeds", _some(str(seed) for seed in table["seed"])),
        ("Quantized copies", _quantization(table)),
        ("Widths", "; ".join(dict.fromkeys(widths_of(copies.sort_values("bits", ascending=False, kind="stable"))))),
        ("Quantized", _some(_planned(plans))),
        ("Left as it is", _some(_left_alone(plans))),
        ("Device", _some(_device(row, trainings) for row in table.itertuples())),
        ("Versions", _some(", ".join(f"{key} {text}" for key, text in sweep["versions"].items()) for sweep in sweeps)),
        ("Revision", _some(str(sweep["git"]) for sweep in sweeps if sweep.get("git"))),
    ]
    return [(title, text) for title, text in card if text]


def _some(texts: Iterable[str], most: int = MAX_TEXTS) -> str:
    """Different texts, the first ones of many."""
    different = [text for text in dict.fromkeys(texts) if text]
    rest = f"; and {len(different) - most} more" if len(different) > most else ""
    return "; ".join(different[:most]) + rest


def _prepared(params: Mapping[str, Scalar]) -> str:
    """How the files of a set that says so became pixels."""
    names = ("crop", "image_size", "resize", "interpolation", "antialias", "mean", "std")
    values = {name: params.get(f"data.{name}") for name in names}
    parts = [f"{name} {value_text(value)}" for name, value in values.items() if value is not None]
    return ", ".join(parts) if values["crop"] is not None else ""


def _kept_apart(params: Mapping[str, Scalar]) -> str:
    """Images that calibrate or select, and are never scored."""
    parts = [f"{params[f'data.num_{name}']} to {verb}" for name, verb in (("calib", "calibrate"), ("select", "select"))
             if params.get(f"data.num_{name}")]  # fmt: skip
    return f"{', '.join(parts)}, of the training images" if parts else ""


def _network(params: Mapping[str, Scalar], table: pd.DataFrame) -> str:
    size = table["size_bytes"][is_float(table)]
    about = f", {size.iloc[0] / MIB:.2f} MiB in float" if len(size) else ""
    begun = params.get("model.weights")
    weights = ", pretrained weights" if begun == PRETRAINED else f", weights {value_text(begun)}" if begun else ""
    return f"{params.get('model.name', '')}{weights}{about}"


def _training(params: Mapping[str, Scalar]) -> str:
    if "checkpoint" in params:
        evaluated = params["checkpoint"]
        return f"none here: {'the pretrained network' if evaluated == PRETRAINED else value_text(evaluated)} as it is"
    read = [name for name in RECIPE if name != "momentum" or params.get("train.optimizer") in SGD]
    recipe = [f"{name} {value_text(params[f'train.{name}'])}" for name in read if params.get(f"train.{name}") is not None]
    qat = f"quantization-aware, {params['qat.name']}: " if "qat.name" in params else ""
    return qat + ", ".join(recipe)


def _quantization(table: pd.DataFrame) -> str:
    """What the copies are made with, as far as the table says."""
    copies = table[~is_float(table)]
    parts = []
    for column, title in VARIANT_COLUMNS:
        values = (
            [str(value) for value in copies[column].dropna().unique() if value not in ("", "none")] if column in copies else []
        )
        if values:
            parts.append(f"{title} {', '.join(values[:MAX_TEXTS])}{' ...' if len(values) > MAX_TEXTS else ''}")
    widths = (
        sorted({int(bits) for bits in copies["activation_bits"].dropna()}, reverse=True) if "activation_bits" in copies else []
    )
    parts.append(f"activation bits {', '.join(map(str, widths))}" if widths else "activations stay float")
    return "; ".join(parts) if len(copies) else ""


def _planned(plans: Iterable[LabelledPlan]) -> Iterable[str]:
    """Which tensors, in numbers."""
    for _, rows in plans:
        chosen = [row for row in rows if row.get("bits") is not None and "num_elements" in row]
        total = sum(row.get("num_elements") or 0 for row in rows)
        kinds = Counter(f"{row.get('kind')} {row.get('role')}" for row in chosen)
        if chosen and total:
            share = 100 * sum(row["num_elements"] for row in chosen) / total
            named = ", ".join(f"{count} {_several(kind) if count > 1 else kind}" for kind, count in kinds.items())
            yield f"{named}: {share:.1f} % of all elements, statistics too"


def _several(kind: str) -> str:
    """The plural of a tensor's kind and role."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def _left_alone(plans: Iterable[LabelledPlan]) -> Iterable[str]:
    """Which tensors are left alone, by reason."""
    for _, rows in plans:
        reasons = Counter(row.get("reason") for row in rows if row.get("bits") is None and row.get("reason"))
        yield ", ".join(f"{count} ({reason})" for reason, count in reasons.items())


def _device(row: Any, trainings: Sequence[RunRow]) -> str:
    cpu = next((tags["qexp.cpu"] for tags in (run.get("tags", {}) for run in trainings) if tags.get("qexp.cpu")), "")
    ranks = f", {row.world_size} ranks" if row.world_size > 1 else ""
    return f"{row.device}{f' ({cpu})' if cpu and row.device == 'cpu' else ''}{ranks}"
