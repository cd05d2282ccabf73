"""From an inventory and a policy to a plan: which tensor, which quantizer, which rule; what is left alone, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.types import ActivationInfo, Plan, PlanRow, QuantSpec, TensorInfo
from qexp.config.policy import PolicySettings
from qexp.config.quant import QuantSettings, WeightQuantSettings
from qexp.policy.activations import NOT_EXECUTED, plan_activations
from qexp.policy.policies import policy_of
from qexp.policy.rules import CONSTANT, LAYERS, NEVER, Rule, match_rules, some, unread_settings
from qexp.quant.float_format import format_at
from qexp.quant.scheme_table import OWN_SETTINGS, PER_BLOCK

COUNTER = "counter"
STATISTIC = "BN statistic"


def make_plan(
    tensors: Sequence[TensorInfo],
    *,
    policy: PolicySettings,
    quant: QuantSettings,
    bits: int,
    mode: str,
    activations: Sequence[ActivationInfo] = (),
) -> Plan:
    """Choose a quantizer for each tensor, or the reason to leave it alone.

    Statistics, counters, constant tensors and those that no forward reads are left alone whatever the rules say. Under
    `mode=half` every floating-point tensor is cast, whatever the policy.

    Args:
        tensors: the inventory, in the order of the state dict.
        policy: which tensor gets which width.
        quant: scheme and grid.
        bits: width where the policy names none, 1 to 16.
        mode: `int`, `float` or `half`.
        activations: the activation points of the network, everywhere or at layers only; read where activations are quantized.

    Raises:
        UserError: nothing to quantize, a rule that matches nothing or is shadowed, or one storage with two quantizers.
    """
    assert mode in ("int", "float", "half"), mode
    if mode == "half":
        return _half_plan(tensors, policy, quant)
    rules = policy_of(policy).rules(tensors, bits)
    chosen = match_rules(rules, tensors, strict=bool(policy.own_rules))
    rows = tuple(_row(info, chosen.get(info.name), quant, mode, policy.info.left_alone) for info in tensors)
    rows = _unify_ties(rows, policy)
    points, point_notes = plan_activations(activations, tensors, policy=policy, quant=quant, bits=bits, mode=mode)
    if not any(row.spec for row in rows) and not any(row.spec for row in points):
        raise _nothing(tensors, rows, policy)
    notes = [*unread_settings(policy), *_notes(rows, rules, chosen, quant, policy), *point_notes]
    # The control isolates rounding, and rounding is all that quant.input does.
    input_quant = "none" if mode == "float" else quant.input
    return Plan(rows=rows, mode=mode, input_quant=input_quant, notes=tuple(notes), activations=points)


def _row(info: TensorInfo, rule: Rule | None, quant: QuantSettings, mode: str, left_alone: str) -> PlanRow:
    """What happens to one tensor."""
    label = rule.label if rule else ""
    reason = _reason(info, rule, left_alone)
    if reason or rule is None:
        return PlanRow(info, None, label, reason)
    assert rule.bits is not None, label  # only rules about activations leave the width to the settings
    return PlanRow(info, _spec(info, rule.bits, quant, mode), label)


def _reason(info: TensorInfo, rule: Rule | None, left_alone: str) -> str:
    """Why the tensor is left alone; empty where it is quantized."""
    if info.role == "counter":
        return COUNTER
    if info.role == "statistic":
        return STATISTIC
    if rule and rule.keep:
        return "kept as a rule asks"
    if not info.num_elements:
        return "empty tensor"
    if info.order < 0:
        return NOT_EXECUTED
    if rule:
        return CONSTANT if info.constant else "" if "float" in info.dtype else f"{info.dtype} has no quantizer"
    if left_alone:
        return left_alone
    if info.kind == "norm" and info.role in ("weight", "bias"):
        return "scale and shift of a norm layer: not quantized unless a rule asks"
    if info.role == "bias":
        return "bias: not quantized unless a rule asks"
    return "no weight of a conv or linear layer: not quantized unless a rule asks"


def _spec(info: TensorInfo, bits: int, quant: QuantSettings, mode: str) -> QuantSpec:
    """The quantizer, with the settings that its scheme reads: one without effect makes no other plan."""
    quant.row.check_width(bits)
    quant.row.check_control(mode, bits)
    weight, granularity = quant.weight, _granularity(info, quant)
    own = {key: getattr(weight, key) for key in quant.row.reads}
    if "format" in own:
        own["format"] = format_at(weight.format, bits).name
    if granularity == PER_BLOCK:
        own["block_size"] = quant.row.block_size(weight.block_size)
    if weight.rounding == "stochastic" and mode == "int":
        # Tied tensors share what is drawn, as they share their memory.
        own["rounding_seed"] = int(hash_json({"seed": weight.rounding_seed, "tensor": info.tied_to or info.name}, 15), 16)
    return QuantSpec(
        scheme=quant.scheme,
        source=quant.source,
        bits=bits,
        mode=mode,
        granularity=granularity,
        axis=info.channel_axis if granularity in ("per_channel", "per_group", PER_BLOCK) else 0,
        rounding=weight.rounding,
        arithmetic=weight.arithmetic,
        group_size=weight.group_size if granularity == "per_group" else None,
        **own,
    )


def _granularity(info: TensorInfo, quant: QuantSettings) -> str:
    """What shares a range; a vector has one element per channel, a matrix one per (Cin, Cout) pair: they take a coarser one."""
    granularity = quant.weight.granularity
    if quant.row.block is not None:
        return PER_BLOCK
    if len(info.shape) < 2:
        return "per_tensor"
    return "per_channel" if granularity == "per_in_out_channel" and len(info.shape) < 3 else granularity


def _half_plan(tensors: Sequence[TensorInfo], policy: PolicySettings, quant: QuantSettings) -> Plan:
    """Every floating-point tensor as fp16, statistics included, as `model.half()` does it."""
    spec = QuantSpec(scheme="half", bits=16, mode="half")
    rows = []
    for info in tensors:
        if "float" in info.dtype and info.num_elements:
            rows.append(PlanRow(info, spec, "mode=half"))
        else:
            rows.append(
                PlanRow(info, None, "", COUNTER if info.role == "counter" else f"{info.dtype}, not a floating-point tensor")
            )
    if not any(row.spec for row in rows):
        raise _nothing(tensors, tuple(rows), policy)
    note = f"mode=half casts every floating-point tensor to fp16, and the activations; bits and policy={policy.name} are not used"
    notes = [note] if quant.activation.bits is None else [note, "quant.activation.bits is not used by mode=half"]
    return Plan(rows=tuple(rows), mode="half", input_quant=quant.input, notes=tuple(notes))


def _unify_ties(rows: tuple[PlanRow, ...], policy: PolicySettings) -> tuple[PlanRow, ...]:
    """Give all names of one storage the same quantizer, since a write under one name is a write under all."""
    groups: dict[str, list[PlanRow]] = {}
    for row in rows:
        groups.setdefault(row.info.tied_to or row.info.name, []).append(row)
    shared: dict[str, PlanRow] = {}
    for group in groups.values():
        deciding = next((row for row in group if row.spec), None)
        if len(group) == 1 or deciding is None:
            continue
        for row in group:
            if row.spec is None and "kept" not in row.reason:
                shared[row.info.name] = replace(
                    row, spec=deciding.spec, rule=f"shares storage with {deciding.info.name}", reason=""
                )
            elif row.spec != deciding.spec:
                names = ", ".join(tied.info.name for tied in group)
                remedy = f"They share one storage: {names}."
                raise UserError("policy", policy.name, allowed="one quantizer for tied tensors", remedy=remedy)
    return tuple(shared.get(row.info.name, row) for row in rows)


def _notes(
    rows: Sequence[PlanRow], rules: Sequence[Rule], chosen: dict[str, Rule], quant: QuantSettings, policy: PolicySettings
) -> list[str]:
    """What a reader of the plan should know beside its rows."""
    idle = [rule for rule in rules if rule not in chosen.values()]
    notes = policy_of(policy).notes(rows, idle)
    vectors = [row.info.name for row in rows if row.spec and len(row.info.shape) < 2]
    if vectors and quant.weight.granularity != "per_tensor" and quant.row.block is None:
        notes.append(f"{len(vectors)} vectors are quantized per tensor, having one element per channel: {some(vectors)}")
    matrices = [row.info.name for row in rows if row.spec and len(row.info.shape) == 2]
    if matrices and quant.weight.granularity == "per_in_out_channel" and quant.row.block is None:
        notes.append(
            f"{len(matrices)} matrices are quantized per_channel, having one element per (Cin, Cout) pair: {some(matrices)}"
        )
    return notes + _quant_notes(quant)


def _quant_notes(quant: QuantSettings) -> list[str]:
    """What the scheme does not read, and what it does to negative values."""
    row, default = quant.row, WeightQuantSettings()
    notes = [
        f"quant.weight.{key} is not used by quant={row.name}"
        for key in OWN_SETTINGS
        if key not in row.reads and getattr(quant.weight, key) != getattr(default, key)
    ]
    if row.ends_of(quant.weight.signed) == "upper":
        notes.append(f"quant={row.name} is unsigned: negative values become 0")
    return notes


def _nothing(tensors: Sequence[TensorInfo], rows: Sequence[PlanRow], policy: PolicySettings) -> UserError:
    """The error for a plan without a quantized tensor."""
    layers = [row for row in rows if row.info.kind in LAYERS and row.info.role == "weight"]
    if not layers:
        others = [info.name for info in tensors if info.role not in NEVER]
        remedy = "The network has no conv or linear layer."
        if others:
            remedy += f" Other parameters are reached by policy=rules with kind or role set: {some(others)}."
    else:
        reasons = sorted({row.reason for row in layers})
        remedy = f"Its {len(layers)} conv and linear weights are left alone: {'; '.join(reasons)}."
    return UserError("policy", policy.name, allowed="a policy that quantizes at least one tensor", remedy=remedy)
