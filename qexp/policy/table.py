"""A plan as a person reads it, and as rows for a file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TypedDict

from qexp.base.table import Column, Table, lines
from qexp.base.types import ActivationRow, Plan, PlanRow
from qexp.policy.rules import NEVER
from qexp.policy.sizes import larger_than_float, plan_size_bytes, row_bytes
from qexp.quant.scheme_table import PER_BLOCK, grid_name


class PlannedTensor(TypedDict):
    """One state-dict entry of a plan, for JSON; what a quantizer would say is None where the tensor is left alone."""

    name: str
    module_type: str
    kind: str
    role: str
    shape: list[int]
    dtype: str
    order: int
    bits: int | None
    mode: str | None
    scheme: str | None
    granularity: str | None
    axis: int | None
    group_size: int | None
    rule: str
    reason: str
    num_elements: int
    size_bytes: int


@dataclass(frozen=True)
class PrintedPlan:
    """A plan as it is printed.

    Args:
        bits: widths of the weights, `3/8`.
        way: what else the summary says, which copies of other widths may have in common; without its size.
        size_mib: of what is stored.
        tables: what is quantized: tensors, then activations, where there are any.
        kept: lines about what is left alone, by reason.
        remarks: alarms and notes, which stand in the shortest form too.
        num_widths: of the tensors.
    """

    bits: str
    way: str
    size_mib: float
    tables: tuple[Table, ...]
    kept: tuple[str, ...]
    remarks: tuple[str, ...]
    num_widths: int

    @property
    def summary(self) -> str:
        """One line: `W8A32 (activations fp32), mode int, ...: 20 of 116 tensors, 99.4 % of parameters, 0.266 MiB stored`."""
        return f"W{self.bits}{self.way}, {self.size_mib:.3g} MiB stored"

    @property
    def body(self) -> list[str]:
        """The lines below the summary."""
        return [*(line for table in self.tables for line in lines(table, indent="  ")), *self.kept, *self.remarks]

    @property
    def gist(self) -> Hashable:
        """What tells two printed plans apart: all of it, or all but widths where one serves all tensors."""
        tables = self.tables if self.num_widths != 1 else tuple(table.without("bits") for table in self.tables)
        return tuple(tuple(map(tuple, table.cells)) for table in tables), self.kept, self.remarks


def plan_rows(plan: Plan) -> list[PlannedTensor]:
    """One flat dictionary per state-dict entry."""
    rows: list[PlannedTensor] = []
    for row in plan.rows:
        info, spec = row.info, row.spec
        rows.append(
            {
                "name": info.name,
                "module_type": info.module_type,
                "kind": info.kind,
                "role": info.role,
                "shape": list(info.shape),
                "dtype": info.dtype,
                "order": info.order,
                "bits": spec.bits if spec else None,
                "mode": spec.mode if spec else None,
                "scheme": grid_name(spec) if spec else None,
                "granularity": spec.granularity if spec else None,
                "axis": spec.axis if spec and spec.granularity in ("per_channel", "per_group", PER_BLOCK) else None,
                "group_size": (spec.group_size or spec.block_size or None) if spec else None,
                "rule": row.rule,
                "reason": row.reason,
                "num_elements": info.num_elements,
                "size_bytes": row_bytes(row),
            }
        )
    return rows


def print_plan(plan: Plan, *, policy: str = "") -> PrintedPlan:
    """The plan as printed: a summary, a table of what is quantized, what is left alone by reason, and the notes.

    Args:
        plan: of `make_plan`.
        policy: its name, for the summary.
    """
    total = sum(row.info.num_elements for row in plan.rows if _is_parameter(row))
    share = replace(_SHARE, value=lambda row: 100 * row.info.num_elements / max(total, 1) if _is_parameter(row) else None)
    tables = [Table.of((*_TENSOR, share), [row for row in plan.rows if row.spec])]
    points = [row for row in plan.activations if row.spec]
    tables += [Table.of(_ACTIVATION, points)] if points else []
    kept: dict[str, list[str]] = {}
    for tensor in plan.rows:
        if tensor.spec is None:
            kept.setdefault(tensor.reason, []).append(tensor.info.name)
    for point in plan.activations:
        if point.spec is None:
            kept.setdefault(f"activations: {point.reason}", []).append(point.info.name)
    left = ["left alone:"] if kept else []
    left += [f"  {len(names)} x {reason} ({names[0]}{', ...' if len(names) > 1 else ''})" for reason, names in kept.items()]
    remarks = [*(f"! {alarm}" for alarm in larger_than_float(plan)), *(f"note: {note}" for note in plan.notes)]
    widths = {spec.bits for spec in plan.quantized.values()}
    bits = "16" if plan.mode == "half" else "/".join(map(str, sorted({row.spec.bits for row in plan.rows if row.spec})))
    if not bits:
        bits = "32" if plan.quantized_activations else ""
    size_mib, told = plan_size_bytes(plan) / 2**20, (tuple(tables), tuple(left), tuple(remarks))
    return PrintedPlan(bits, _way(plan, policy, total), size_mib, *told, len(widths))


def _way(plan: Plan, policy: str, total: int) -> str:
    """`A32 (activations fp32), mode int, scheme linear per_tensor, policy uniform: 20 of 116 tensors, 99.4 % of parameters`."""
    specs = [row.spec for row in plan.rows if row.spec]
    if plan.mode == "half":
        parts = ["A16 (fp16)", "mode half"]
    else:
        schemes = sorted({f"{grid_name(spec)} {spec.granularity}" for spec in specs})
        control = " (a control: not rounded)" if plan.mode == "float" else ""
        parts = [_activations(plan), f"mode {plan.mode}{control}"]
        parts += [f"scheme {' and '.join(schemes)}"] if schemes else []
        parts += [f"policy {policy}"] if policy else []
    parts += [f"input {plan.input_quant}"] if plan.input_quant != "none" else []
    share = 100 * sum(row.info.num_elements for row in plan.rows if row.spec and _is_parameter(row)) / max(total, 1)
    return f"{', '.join(parts)}: {len(specs)} of {len(plan.rows)} tensors, {share:.1f} % of parameters"


def _activations(plan: Plan) -> str:
    """`A32 (activations fp32)`, `A8 (activations static affine per_tensor)`."""
    specs = list(plan.quantized_activations.values())
    if not specs:
        return "A32 (activations fp32)"
    widths = "/".join(str(width) for width in sorted({spec.bits for spec in specs}))
    ways = sorted(
        {
            f"{'dynamic' if spec.dynamic else 'static'} {grid_name(spec)} {spec.granularity}"
            + (" at layers" if spec.layers_only else "")
            for spec in specs
        }
    )
    return f"A{widths} (activations {' and '.join(ways)})"


def _readers(row: ActivationRow) -> str:
    """Two of them, and how many more there are."""
    more = len(row.info.consumers) - 2
    return ", ".join(row.info.consumers[:2]) + (f", {more} more" if more > 0 else "")


def _made_by(row: ActivationRow) -> str:
    info = row.info
    return f"{info.operator} x {len(info.producers)}" if len(info.producers) > 1 else info.operator


def _shape(row: PlanRow | ActivationRow) -> str:
    return "x".join(str(size) for size in row.info.shape)


def _grid(row: PlanRow | ActivationRow) -> str:
    """`linear`, `linear per_channel axis 0`, `affine per_group 64 axis 0`."""
    spec = row.spec
    assert spec is not None
    name = grid_name(spec) + ("" if spec.scaled else " unscaled")
    if spec.granularity == "per_tensor":
        return name
    size = f" {spec.group_size or spec.block_size}" if spec.granularity in ("per_group", PER_BLOCK) else ""
    axis = "" if spec.granularity == "per_in_out_channel" else f" axis {spec.axis}"
    return f"{name} {spec.granularity}{size}{axis}"


_TENSOR = (
    Column(name="name", title="tensor", kind="text", value=lambda row: row.info.name),
    Column(name="shape", title="shape", kind="text", value=lambda row: _shape(row) or "scalar"),
    Column(name="bits", title="bits", kind="count", align="left", value=lambda row: row.spec.bits),
    Column(name="scheme", title="scheme", kind="text", value=_grid),
    Column(name="rule", title="rule", kind="text"),
)
_SHARE = Column(name="share", title="params %", kind="percent", empty="-")
_ACTIVATION = (
    Column(name="name", title="activation", kind="text", value=lambda row: row.info.name),
    Column(name="made_by", title="made by", kind="text", value=_made_by),
    Column(name="read_by", title="read by", kind="text", value=_readers),
    Column(name="shape", title="shape", kind="text", value=_shape),
    Column(name="bits", title="bits", kind="count", align="left", value=lambda row: row.spec.bits),
    Column(name="scheme", title="scheme", kind="text", value=_grid),
    Column(name="rule", title="rule", kind="text", align="right"),
)


def _is_parameter(row: PlanRow) -> bool:
    """True for what counts among the parameters: no statistics, no counters, each storage once."""
    return row.info.role not in NEVER and row.info.tied_to is None
