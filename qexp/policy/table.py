"""A plan as a person reads it, as rows for a file, and its size in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from qexp.base.types import ActivationRow, Plan, PlanRow, QuantSpec
from qexp.policy.rules import NEVER
from qexp.quant.scheme_table import scheme_name
from qexp.quant.storage import stored_bytes

_NUM_BYTES = {
    "float64": 8,
    "int64": 8,
    "complex64": 8,
    "complex128": 16,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
}


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


class PlannedActivation(TypedDict):
    """One activation point of a plan, for JSON; what a quantizer would say is None where it is left float."""

    name: str
    producers: list[str]
    operator: str
    consumers: list[str]
    layers: list[str]
    shape: list[int]
    order: int
    bits: int | None
    mode: str | None
    scheme: str | None
    granularity: str | None
    axis: int | None
    dynamic: bool | None
    rule: str
    reason: str


_HEADINGS = ("tensor", "shape", "bits", "scheme", "rule", "params %")
_ACTIVATION_HEADINGS = ("activation", "made by", "read by", "shape", "bits", "scheme", "rule")


def plan_size_bytes(plan: Plan) -> int:
    """Bytes of the state dict under the plan: packed codes, their scales, zero points and codebooks, and the rest as stored.

    `qexp.quant.storage.stored_bytes` for integer codes; two bytes an element under `half`; a `float` control has no codes
    and counts as stored. A storage with several names counts once.
    """
    return sum(_row_bytes(row) for row in plan.rows if row.info.tied_to is None)


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
                "scheme": scheme_name(spec.scheme) if spec else None,
                "granularity": spec.granularity if spec else None,
                "axis": spec.axis if spec and spec.granularity in ("per_channel", "per_group") else None,
                "group_size": spec.group_size if spec else None,
                "rule": row.rule,
                "reason": row.reason,
                "num_elements": info.num_elements,
                "size_bytes": _row_bytes(row),
            }
        )
    return rows


def activation_rows(plan: Plan) -> list[PlannedActivation]:
    """One flat dictionary per activation point."""
    rows: list[PlannedActivation] = []
    for row in plan.activations:
        info, spec = row.info, row.spec
        rows.append(
            {
                "name": info.name,
                "producers": list(info.producers),
                "operator": info.operator,
                "consumers": list(info.consumers),
                "layers": list(info.layers),
                "shape": list(info.shape),
                "order": info.order,
                "bits": spec.bits if spec else None,
                "mode": spec.mode if spec else None,
                "scheme": spec.scheme if spec else None,
                "granularity": spec.granularity if spec else None,
                "axis": spec.axis if spec and spec.granularity == "per_channel" else None,
                "dynamic": spec.dynamic if spec else None,
                "rule": row.rule,
                "reason": row.reason,
            }
        )
    return rows


def format_plan(plan: Plan, *, policy: str = "") -> str:
    """The plan as printed: a summary, a table of what is quantized, what is left alone by reason, and the notes.

    Args:
        plan: of `make_plan`.
        policy: its name, for the summary.
    """
    total = sum(row.info.num_elements for row in plan.rows if _is_parameter(row))
    chosen = [row for row in plan.rows if row.spec]
    lines = [_summary(plan, policy, total), *_table([_HEADINGS, *(_cells(row, total) for row in chosen)])]
    points = [row for row in plan.activations if row.spec]
    if points:
        lines += _table([_ACTIVATION_HEADINGS, *map(_activation_cells, points)])
    kept: dict[str, list[str]] = {}
    for tensor in plan.rows:
        if tensor.spec is None:
            kept.setdefault(tensor.reason, []).append(tensor.info.name)
    for point in plan.activations:
        if point.spec is None:
            kept.setdefault(f"activations: {point.reason}", []).append(point.info.name)
    if kept:
        lines.append("left alone:")
        lines += [f"  {len(names)} x {reason} ({names[0]}{', ...' if len(names) > 1 else ''})" for reason, names in kept.items()]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _summary(plan: Plan, policy: str, total: int) -> str:
    """`W8A32, mode int, scheme linear per_tensor, policy uniform: 20 of 116 tensors, 99.4 % of parameters, 0.28 MB`."""
    specs = [row.spec for row in plan.rows if row.spec]
    bits = "/".join(str(width) for width in sorted({spec.bits for spec in specs}))
    if plan.mode == "half":
        parts = ["W16A16 (fp16)", "mode half"]
    else:
        schemes = sorted({f"{scheme_name(spec.scheme)} {spec.granularity}" for spec in specs})
        control = " (a control: not rounded)" if plan.mode == "float" else ""
        parts = [_widths(plan, bits), f"mode {plan.mode}{control}"]
        parts += [f"scheme {' and '.join(schemes)}"] if schemes else []
        parts += [f"policy {policy}"] if policy else []
    parts += [f"input {plan.input_quant}"] if plan.input_quant != "none" else []
    share = 100 * sum(row.info.num_elements for row in plan.rows if row.spec and _is_parameter(row)) / max(total, 1)
    size = plan_size_bytes(plan) / 1e6
    return f"{', '.join(parts)}: {len(specs)} of {len(plan.rows)} tensors, {share:.1f} % of parameters, {size:.3g} MB stored"


def _widths(plan: Plan, bits: str) -> str:
    """`W8A32 (activations fp32)`, `W4A8 (activations static affine per_tensor)`."""
    specs = list(plan.quantized_activations.values())
    if not specs:
        return f"W{bits}A32 (activations fp32)"
    widths = "/".join(str(width) for width in sorted({spec.bits for spec in specs}))
    ways = sorted(
        {
            f"{'dynamic' if spec.dynamic else 'static'} {spec.scheme} {spec.granularity}"
            + (" at layers" if spec.layers_only else "")
            for spec in specs
        }
    )
    return f"W{bits or 32}A{widths} (activations {' and '.join(ways)})"


def _table(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table, its last column flush right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line in cells:
        left = [line[column].ljust(widths[column]) for column in range(len(line) - 1)]
        lines.append("  " + "  ".join([*left, line[-1].rjust(widths[-1])]))
    return lines


def _activation_cells(row: ActivationRow) -> tuple[str, ...]:
    """One line of the table of activations."""
    info, spec = row.info, row.spec
    assert spec is not None
    readers = ", ".join(info.consumers[:2]) + (f", {len(info.consumers) - 2} more" if len(info.consumers) > 2 else "")
    made_by = f"{info.operator} x {len(info.producers)}" if len(info.producers) > 1 else info.operator
    shape = "x".join(str(size) for size in info.shape)
    return (info.name, made_by, readers, shape, str(spec.bits), _grid(spec), row.rule)


def _cells(row: PlanRow, total: int) -> tuple[str, ...]:
    """One line of the table."""
    spec = row.spec
    assert spec is not None
    shape = "x".join(str(size) for size in row.info.shape) or "scalar"
    share = f"{100 * row.info.num_elements / max(total, 1):.2f}" if _is_parameter(row) else "-"
    return (row.info.name, shape, str(spec.bits), _grid(spec), row.rule, share)


def _grid(spec: QuantSpec) -> str:
    """`linear`, `linear per_channel axis 0`, `affine per_group 64 axis 0`."""
    name = scheme_name(spec.scheme)
    if spec.granularity == "per_tensor":
        return name
    size = f" {spec.group_size}" if spec.granularity == "per_group" else ""
    axis = "" if spec.granularity == "per_in_out_channel" else f" axis {spec.axis}"
    return f"{name} {spec.granularity}{size}{axis}"


def _is_parameter(row: PlanRow) -> bool:
    """True for what counts among the parameters: no statistics, no counters, each storage once."""
    return row.info.role not in NEVER and row.info.tied_to is None


def _row_bytes(row: PlanRow) -> int:
    """Bytes of one tensor under its quantizer."""
    info, spec = row.info, row.spec
    stored = info.num_elements * _NUM_BYTES.get(info.dtype, 1)
    if spec is None or spec.mode == "float":
        return stored
    if spec.mode == "half":
        return min(stored, 2 * info.num_elements)
    return stored_bytes(info.shape, spec)
