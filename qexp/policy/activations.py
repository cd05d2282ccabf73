"""From a network's activation points and a policy to their quantizers, or the reasons to leave them float.

The width is `quant.activation.bits`; `policy=first_last` gives `edge_bits` to what enters the first and the last layer. Rules
with `role: activation` go before it, the first match winning, and one that decides nothing is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from qexp.base.errors import UserError, nearest
from qexp.base.types import ActivationInfo, ActivationRow, QuantSpec, TensorInfo
from qexp.config.policy import PolicySettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings
from qexp.policy.policies import policy_of
from qexp.policy.rules import ACTIVATION, Rule, edge_weights
from qexp.quant.float_format import format_at
from qexp.quant.scheme_table import PER_BLOCK, SCHEMES

SIGNED = "symmetric_restricted"  # what a grid without negative codes gives way to where values may be negative
NOT_EXECUTED = "not executed by a forward pass"
NOT_ENTERED = "not entered: the products inside stay float"


def plan_activations(
    activations: Sequence[ActivationInfo],
    tensors: Sequence[TensorInfo],
    *,
    policy: PolicySettings,
    quant: QuantSettings,
    bits: int,
    mode: str,
) -> tuple[tuple[ActivationRow, ...], list[str]]:
    """A row for each activation, and notes; no rows where neither the settings nor a rule give activations a width.

    Args:
        activations: of `qexp.nn.activation_points.activations`, everywhere or at layers only as `quant.activation` says.
        tensors: the inventory, which determines the first and the last layer.
        policy: which tensor gets which width.
        quant: scheme and grid.
        bits: width of weights where the policy names none, 1 to 16.
        mode: `int`, or `float`, where values are clamped and not rounded.

    Raises:
        UserError: a rule that matches nothing, that earlier rules shadow or that has no width; a network whose activations are
            not known.
    """
    rules = [(number, rule) for number, rule in enumerate(policy_of(policy).rules(tensors, bits)) if ACTIVATION in rule.roles]
    if quant.activation.bits is None and not rules:
        return (), []
    if not any(info.executed and info.entered for info in activations):
        remedy = "No convolution, linear layer or matrix product reads an activation of it."
        raise UserError("quant.activation.bits", quant.activation.bits, allowed="null for this network", remedy=remedy)
    chosen = _match(rules, activations, quant)
    edges = edge_weights(tensors) if policy.info.edge_activations else frozenset()
    rows = tuple(_row(info, chosen.get(info.name), edges, policy, quant, mode) for info in activations)
    return rows, _notes(rows, quant.activation)


def _match(rules: Sequence[tuple[int, Rule]], activations: Sequence[ActivationInfo], quant: QuantSettings) -> dict[str, Rule]:
    """Name of an activation point -> the first rule that matches it."""
    points = [info for info in activations if info.executed and info.entered]
    taken: dict[str, Rule] = {}
    for number, rule in rules:
        key = f"policy.rules[{number}]"
        matched = [info.name for info in points if _matches(rule, info)]
        if not matched:
            names = [*(info.name for info in points), *sorted({name for info in points for name in info.consumers})]
            remedy = nearest(rule.pattern, names) or f"Activations: {', '.join(info.name for info in points[:5])}, ..."
            raise UserError(key, rule.label, allowed="a rule that matches an activation", remedy=remedy)
        undecided = [name for name in matched if name not in taken]
        if not undecided:
            remedy = f"All {len(matched)} activations that it matches are taken by earlier rules; move it before."
            raise UserError(key, rule.label, allowed="a rule that decides something", remedy=remedy)
        if rule.bits is None and quant.activation.bits is None and not rule.keep:
            raise UserError(key, rule.label, allowed="a rule with bits or keep", remedy="quant.activation.bits is null.")
        taken.update(dict.fromkeys(undecided, rule))
    return taken


def _matches(rule: Rule, info: ActivationInfo) -> bool:
    """True where the pattern fits the activation point or an operator that reads it, and the kind is that of such an operator."""
    named = any(fnmatchcase(name, rule.pattern) for name in (info.name, *info.consumers, *info.layers))
    return named and (len(rule.kinds) != 1 or rule.kinds[0] in info.kinds)


def _row(
    info: ActivationInfo, rule: Rule | None, edges: frozenset[str], policy: PolicySettings, quant: QuantSettings, mode: str
) -> ActivationRow:
    """What happens to one activation."""
    if not info.executed or not info.entered:
        return ActivationRow(info, None, "", NOT_EXECUTED if not info.executed else NOT_ENTERED)
    if rule and rule.keep:
        return ActivationRow(info, None, rule.label, "kept as a rule asks")
    if rule:
        label, width = rule.label, rule.bits or quant.activation.bits
    elif edges.intersection(info.layers):
        label, width = "enters the first or last layer", policy.edge_bits
    else:
        label, width = "activations", quant.activation.bits
    if width is None:
        return ActivationRow(info, None, "", "matched by no rule, and quant.activation.bits is null")
    return ActivationRow(info, activation_spec(info, quant.activation, width, mode), label)


def activation_spec(info: ActivationInfo, settings: ActivationQuantSettings, bits: int, mode: str = "int") -> QuantSpec:
    """The quantizer of one activation: an unsigned grid only where no value is negative.

    Args:
        info: the activation point.
        settings: its grid.
        bits: width.
        mode: `int` or `float`.

    Raises:
        UserError: the grid has no codes at that width.
    """
    scheme, row = settings.scheme, settings.row
    if SCHEMES[scheme].ends == "upper" and not info.non_negative and bits > 1:
        scheme = SIGNED
    low = SCHEMES[scheme].min_bits
    if bits < low:
        raise UserError("quant.activation.bits", bits, allowed=f"at least {low} for quant.activation.scheme={scheme}")
    if bits > SCHEMES[scheme].max_bits:
        allowed = f"{SCHEMES[scheme].max_bits} for quant.activation.scheme={scheme}"
        raise UserError("quant.activation.bits", bits, allowed=allowed, remedy=f"{info.name} is given {bits} by the policy.")
    per_channel = settings.granularity == "per_channel"
    own: dict[str, Any] = {}
    if "format" in row.reads:
        own = {"format": format_at(settings.format, bits, "quant.activation.format").name, "scaled": settings.scaled}
    if row.block is not None:
        own = {"granularity": PER_BLOCK, "axis": info.channel_axis, "block_size": row.block_size(settings.block_size)}
    spec = QuantSpec(
        scheme=scheme,
        bits=bits,
        mode=mode,
        granularity=settings.granularity,
        axis=info.channel_axis if per_channel else 0,
        rounding=settings.rounding,
        arithmetic=settings.arithmetic,
        dynamic=settings.dynamic,
        layers_only=settings.layers_only and not settings.dynamic,
    )
    return replace(spec, **own)


def _notes(rows: Sequence[ActivationRow], settings: ActivationQuantSettings) -> list[str]:
    """What a reader should know beside the rows."""
    notes = []
    if settings.granularity == "per_channel":
        notes.append("activations per channel: a simulation only, no integer runtime multiplies codes of several scales")
    signed = [row.info.name for row in rows if row.spec and row.spec.scheme != settings.scheme]
    if signed:
        notes.append(f"{len(signed)} activations may be negative and take {SIGNED}: {', '.join(signed[:3])}, ...")
    upper = [row for row in rows if row.spec and SCHEMES[row.spec.scheme].ends == "upper"]
    clipped = [row.info.name for row in upper if not row.info.non_negative]
    if clipped:
        notes.append(f"{len(clipped)} activations lose their negative values at one bit: {', '.join(clipped[:3])}, ...")
    return notes
