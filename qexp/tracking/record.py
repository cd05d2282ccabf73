"""What is written down: a record of one evaluation, and the sweep it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from qexp.base.label import AS_TRAINED, Label
from qexp.config.outcome import Outcome

FLOAT_VARIANT = AS_TRAINED  # the network as trained, the reference of every delta

FLOAT_BITS = 32  # of a weight and an activation there

JOINED = ("extra", "sources")  # of an earlier evaluation of the same logits they are kept
ADDED = (
    *JOINED,
    "corrected",
    "draw",
    "engine",
    "computed_by",
    "until",
    "num_planned",
    "decided",
)  # fields that a record of before does not have

METRICS_FILE = "metrics.json"  # of a run's artifacts: what the metrics that were asked for are, without their code
CLASSES_FILE = "classes.json"  # beside it: names of the classes, by label


@dataclass(frozen=True, kw_only=True)
class Record:
    """One flat row: what one variant of one training scored after one epoch, and what that number rests on.

    `training` and `variant_key` are content hashes; `variant` is the label a person
    reads and `named` its parts, None in rows that were stored without. `delta_prec1` is against the float
    network of the same epoch, in points. `size_bytes` counts packed codes, their scales and zero points, and the rest as stored.
    `activation_bits` is None where activations are float, the widest where they differ. `ranges` names the methods that found the
    limits of weights and activations, `corrections` what was done beside rounding, in part where numbers stand behind it,
    `corrected` what each correction that was asked for did and left, `calibration` the file of activation ranges.
    `draw` is which calibration images it learned from, `calibrate.draw`; 0 where it read none.
    `extra` holds the metrics that were asked for, by name, `sources` the hash of the code of those of the user's own.
    `engine` is `evaluate.engine` where that is not `eager`, and `eager bf16` under `evaluate.precision=bf16`; `computed_by` says
    then how the network ran, and why, and of a measured `evaluate.batch_size` which was the fastest.
    `until` is the test of `evaluate.until=decided`, which stopped the evaluation of a copy after `n` of `num_planned` images;
    `decided` is what it said.
    `world_size` ranks measured; `trained_by` is how many trained (`1 then 2` where it went on with another number, which
    changes the order of sums).
    """

    experiment: str
    training: str
    variant: str
    variant_key: str
    bits: int
    mode: str
    policy: str
    quant: str
    granularity: str
    input_quant: str
    seed: int
    epoch: int
    prec1: float
    prec5: float
    loss: float
    delta_prec1: float
    n: int
    kl: float | None
    logit_sqnr_db: float | None
    size_bytes: int
    split: str
    plan_hash: str
    data_hash: str
    state: str = "done"
    alarms: tuple[str, ...] = ()
    reused: bool = False
    predictions: str | None = None
    world_size: int = 1
    trained_by: str = ""
    activation_bits: int | None = None
    activation_scheme: str = ""
    ranges: str = ""
    corrections: str = ""
    calibration: str | None = None
    device: str = "cpu"
    time_ms: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    named: Label | None = None
    extra: dict[str, float | None] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    corrected: dict[str, Outcome] = field(default_factory=dict)
    draw: int = 0
    engine: str = ""
    computed_by: str = ""
    until: str = ""
    num_planned: int = 0
    decided: str = ""

    def as_row(self) -> dict[str, Any]:
        """For a journal; what records of before do not have only where there is something in it."""
        row = asdict(self) | ({} if self.named is None else {"named": self.named.as_row()})
        return {key: value for key, value in row.items() if value or key not in ADDED}


def outcomes_of(row: Mapping[str, Any]) -> dict[str, Outcome]:
    """What the corrections of a stored evaluation did, by row of the correction."""
    return {name: Outcome(**values) for name, values in row.get("corrected", {}).items()}


COLUMNS = tuple(item.name for item in fields(Record) if item.name not in ADDED)  # each of `extra` is a column of its own

NEEDED = tuple(item.name for item in fields(Record) if item.default is MISSING and item.default_factory is MISSING)
MEASURED = (*NEEDED, "alarms", "reused", "predictions", "digest", "time_ms")  # what a stored evaluation has


@dataclass(frozen=True)
class Sweep:
    """Where the jobs come from: recorded with every run.

    Args:
        sweep: id, the time it began and a few random digits.
        command: as typed.
        verb: `train`, `evaluate`, `analyze`, `export`, or `start`, for a float training that others begin from.
    """

    sweep: str
    command: str
    verb: str
