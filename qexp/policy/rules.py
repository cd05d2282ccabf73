"""The rules that every policy is compiled to, and the one function that matches them; the first match wins."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

from qexp.base.errors import UserError
from qexp.base.types import TensorInfo
from qexp.config.policy import PolicySettings

LAYERS = ("conv", "linear")
ALL_BUT_NORM = (*LAYERS, "embedding", "other")  # what a rule without a kind is about
NEVER = ("statistic", "counter")  # roles that no policy quantizes
CONSTANT = "constant tensor: a range quantizer is undefined"
_MAX_NAMES = 8
ACTIVATION = "activation"  # the role of rules that `qexp.policy.activations` reads


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a compiled policy.

    Args:
        label: what the plan prints.
        pattern: shell pattern over the state-dict key or the module's name.
        kinds: of the modules; empty where any will do.
        roles: of the tensors; empty where any will do, but statistics and counters are never matched.
        names: only these keys; None any.
        bits: width; None, of an activation, the settings' own.
        keep: leave the tensor as it is.
    """

    label: str
    pattern: str = "*"
    kinds: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    names: frozenset[str] | None = None
    bits: int | None = 8
    keep: bool = False

    def matches(self, info: TensorInfo) -> bool:
        """True where the rule is about this tensor."""
        return (
            info.role not in NEVER
            and (not self.kinds or info.kind in self.kinds)
            and (not self.roles or info.role in self.roles)
            and (self.names is None or info.name in self.names)
            and self.matches_name(info)
        )

    def matches_name(self, info: TensorInfo) -> bool:
        """True where the pattern fits the key or the module's name."""
        return fnmatchcase(info.name, self.pattern) or fnmatchcase(info.module, self.pattern)


def match_rules(rules: Sequence[Rule], tensors: Sequence[TensorInfo], *, strict: bool) -> dict[str, Rule]:
    """Tensor name -> the first rule that matches it; names that none matches are absent.

    Args:
        rules: in order.
        tensors: the inventory.
        strict: raise where a rule decides nothing.

    Raises:
        UserError: a rule that matches no tensor, or only such as earlier rules have taken.
    """
    taken: dict[str, Rule] = {}
    for number, rule in enumerate(rules, start=1):
        if ACTIVATION in rule.roles:
            continue
        matched = [info.name for info in tensors if rule.matches(info)]
        undecided = [name for name in matched if name not in taken]
        if strict and not matched:
            raise _matches_nothing(number, rule, tensors)
        if strict and not undecided:
            owners = sorted({rules.index(taken[name]) + 1 for name in matched})
            remedy = (
                f"All {len(matched)} tensors that it matches are taken by rule {', '.join(map(str, owners))}; move it before."
            )
            raise UserError(f"policy.rules[{number - 1}]", rule.label, allowed="a rule that decides something", remedy=remedy)
        taken.update(dict.fromkeys(undecided, rule))
    return taken


def unread_settings(policy: PolicySettings) -> list[str]:
    """A note for each setting that was given and that the policy does not read."""
    settings = [(field.name, field.default) for field in fields(policy) if field.name not in ("name", *policy.info.reads)]
    unread = [name for name, default in settings if getattr(policy, name) not in (default, [])]
    return [f"policy.{name} is not used by policy={policy.name}" for name in unread]


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    return ", ".join(names[:_MAX_NAMES]) + (f", ... {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def edge_weights(tensors: Iterable[TensorInfo]) -> frozenset[str]:
    """The first and the last conv or linear weight that is executed, with every name of theirs."""
    layers = [info for info in tensors if info.kind in LAYERS and info.role == "weight" and info.order >= 0]
    if not layers:
        return frozenset()
    by_order = sorted(layers, key=lambda info: info.order)
    ends = {info.tied_to or info.name for info in (by_order[0], by_order[-1])}
    return frozenset(info.name for info in layers if (info.tied_to or info.name) in ends)


def _matches_nothing(number: int, rule: Rule, tensors: Sequence[TensorInfo]) -> UserError:
    """The error for a rule without a tensor: why, and what is near."""
    named = [info for info in tensors if rule.matches_name(info)]
    if named:
        groups = sorted({f"{info.kind} {info.role}" for info in named})
        remedy = f"Its pattern fits {len(named)} tensors, but these are: {', '.join(groups)}."
        if rule.kinds == ALL_BUT_NORM and any(info.kind == "norm" and info.role in rule.roles for info in named):
            remedy += " Scale and shift of norm layers are matched by kind: norm."
        elif all(info.role in NEVER for info in named):
            remedy += " No rule quantizes statistics and counters."
    else:
        names = [info.name for info in tensors if info.role not in NEVER]
        inside = [name for name in names if name.startswith(rule.pattern.rstrip(".") + ".")]
        close = difflib.get_close_matches(rule.pattern, [*names, *sorted({info.module for info in tensors})], n=3, cutoff=0.5)
        remedy = f"Did you mean {rule.pattern.rstrip('.')}.*?" if inside else f"Nearest: {', '.join(close or names[:3])}."
    return UserError(f"policy.rules[{number - 1}]", rule.label, allowed="a rule that matches a tensor", remedy=remedy)
