"""What the rows of a journal hold that reports read, and how a row is known for one of them: by its `kind`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict, TypeGuard

from qexp.tracking.rows import Row, Scalar


class RunRow(TypedDict):
    """A run that was opened; the arguments of `qexp.tracking.rows.run_row`."""

    kind: Literal["run"]
    run: str
    parent: str | None
    name: str
    params: dict[str, Scalar]
    tags: dict[str, str]
    artifacts: dict[str, str]
    planned_epochs: int | None
    data_label: NotRequired[str]
    process: dict[str, str | int]
    time_ms: int


class SweepRow(TypedDict):
    """A command that was typed; the arguments of `qexp.tracking.rows.sweep_row`."""

    kind: Literal["sweep"]
    sweep: str
    command: str
    versions: dict[str, str]
    host: str
    git: str | None
    time_ms: int


class StageRow(TypedDict):
    """One fidelity stage of an exported network: scores, and its agreement with the simulation."""

    name: str
    version: str
    n: int
    prec1: float | None
    prec5: float | None
    agreement: float
    logit_sqnr_db: float | None
    n_codes: int
    max_steps: int | None
    first_difference: str | None
    failed_layer: str | None
    passed: bool | None
    note: str
    num_planned: NotRequired[int | None]
    num_integer: NotRequired[int | None]
    integer_macs_pct: NotRequired[float | None]


class PointRow(TypedDict):
    """The codes of an activation point at a fidelity stage; the arguments of `qexp.deploy.code_steps.PointSteps`."""

    stage: str
    point: str
    num_codes: int
    differ_pct: float
    steps: list[int]
    max_steps: int
    alone_differ_pct: float
    alone_steps: list[int]
    alone_max_steps: int


class TimingRow(TypedDict):
    """One network in one runtime at one batch size; `network` is `fp32` for the float one."""

    runtime: str
    version: str
    network: str
    batch: int
    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    peak_bytes: int | None


class LayerRow(TypedDict):
    """The work of one layer for an image."""

    layer: str
    macs: int
    weight_bits: int
    act_bits: int
    bops: int


class ComparedRow(TypedDict):
    """A network held against files of other writers, or such a file; the arguments of `qexp.deploy.compared.Compared`."""

    name: str
    runtime: str
    version: str
    digest: str
    takes: str
    size_bytes: int | None
    n: int
    prec1: float
    prec1_low: float
    prec1_high: float
    prec5: float
    vs_fp32: float | None
    vs_fp32_low: float | None
    vs_fp32_high: float | None
    p_fp32: float | None
    vs_simulated: float | None
    vs_simulated_low: float | None
    vs_simulated_high: float | None
    p_simulated: float | None
    equal_fp32: float
    equal_simulated: float
    num_layers: int | None
    num_integer: int | None
    batch: int | None
    median_ms: float | None
    times_fp32: float | None
    note: str


class TargetRow(TypedDict):
    """What is estimated of an exported network for hardware that is not here; those of `qexp.deploy.targets.TargetRow`."""

    target: str
    prec1: float
    num_operators: int
    flash_bytes: int | None
    arena_bytes: int | None
    num_mapped: int | None
    mapped_macs_pct: float | None
    first_fallback: str | None
    reason: str | None


class ExportRow(TypedDict):
    """An exported network and what was measured of it; `sizes` in bytes, `rungs` are its fidelity stages."""

    kind: Literal["export"]
    run: str
    key: str
    variant: str
    training: str
    file: str
    split: str
    n: int
    simulate: str
    requantization: str
    threads: int
    cpu: str
    sizes: dict[str, int]
    rungs: list[StageRow]
    cost: list[TimingRow]
    layers: list[LayerRow]
    codes: NotRequired[list[PointRow]]
    compared: NotRequired[list[ComparedRow]]
    targets: NotRequired[list[TargetRow]]
    alarms: list[str]
    notes: list[str]
    time_ms: int


def is_run(row: Row) -> TypeGuard[RunRow]:
    """True for the row of a run."""
    return bool(row["kind"] == "run")


def is_sweep(row: Row) -> TypeGuard[SweepRow]:
    """True for the row of a sweep."""
    return bool(row["kind"] == "sweep")


def is_export(row: Row) -> TypeGuard[ExportRow]:
    """True for the row of an exported network."""
    return bool(row["kind"] == "export")
