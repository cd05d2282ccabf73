"""What a plan takes in bytes, and where it takes more than the float network."""

from __future__ import annotations

from qexp.base.text import Note, by_reason, size_text
from qexp.base.types import Plan, PlanRow
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


def plan_size_bytes(plan: Plan) -> int:
    """Bytes of the state dict under the plan: packed codes, their scales, zero points and codebooks, and the rest as stored.

    `qexp.quant.storage.stored_bytes` for integer codes; two bytes an element under `half`; a `float` control has no codes
    and counts as stored. A storage with several names counts once.
    """
    return sum(row_bytes(row) for row in plan.rows if row.info.tied_to is None)


def larger_than_float(plan: Plan) -> list[str]:
    """An alarm where a granularity has so many ranges that a tensor takes no fewer bytes than in float: it is not made smaller.

    One range for a tensor is the least that there is, so vectors of a few elements are not meant.
    """
    quantized = [row for row in plan.rows if row.spec is not None and row.spec.mode == "int" and row.info.tied_to is None]
    alarms = []
    for granularity in dict.fromkeys(row.spec.granularity for row in quantized if row.spec):
        chosen = [row for row in quantized if row.spec and row.spec.granularity == granularity]
        larger = [row for row in chosen if granularity != "per_tensor" and row_bytes(row) >= _float_bytes(row)]
        if larger:
            took, whole = (_exact(sum(map(count, larger))) for count in (row_bytes, _float_bytes))
            reason = f"{len(larger)} of {len(chosen)} tensors take {took} with their {granularity} ranges, {whole} in float"
            alarms += by_reason([Note(row.info.name, reason) for row in larger], most=3)
    return alarms


def _exact(num_bytes: int) -> str:
    """A size that shows a difference of a few bytes."""
    return f"{num_bytes} bytes" if num_bytes < 10_000 else size_text(num_bytes)


def row_bytes(row: PlanRow) -> int:
    """Bytes of one tensor under its quantizer."""
    info, spec = row.info, row.spec
    stored = _float_bytes(row)
    if spec is None or spec.mode == "float":
        return stored
    if spec.mode == "half":
        return min(stored, 2 * info.num_elements)
    return stored_bytes(info.shape, spec)


def _float_bytes(row: PlanRow) -> int:
    """Bytes of one tensor as the network stores it."""
    return row.info.num_elements * _NUM_BYTES.get(row.info.dtype, 1)
