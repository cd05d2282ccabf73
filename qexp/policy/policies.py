"""Every policy as one ordered list of rules, and what it says of a plan; its row is in `qexp/config/policy.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from qexp.base.types import PlanRow, TensorInfo
from qexp.config.policy import PolicySettings, RuleSettings
from qexp.policy.rules import ACTIVATION, ALL_BUT_NORM, CONSTANT, LAYERS, Rule, edge_weights, some


class Policy(ABC):
    """What makes the rules.

    Args:
        settings: of the policy.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings

    @abstractmethod
    def rules(self, tensors: Sequence[TensorInfo], bits: int) -> list[Rule]:
        """The rules, in order.

        Args:
            tensors: the inventory, which determines the first and the last layer.
            bits: where the policy names no width of its own.
        """

    def notes(self, rows: Sequence[PlanRow], idle: Sequence[Rule]) -> list[str]:
        """What a reader of the plan should know beside its rows.

        Args:
            rows: of the plan.
            idle: rules that decide nothing.
        """
        constants = _constants(rows)
        return [f"{len(constants)} chosen tensors are constant and stay as they are: {some(constants)}"] if constants else []


class Uniform(Policy):
    """Every conv and linear weight."""

    def rules(self, tensors: Sequence[TensorInfo], bits: int) -> list[Rule]:
        """One rule."""
        return [Rule(label="conv and linear weights", kinds=LAYERS, roles=("weight",), bits=bits)]


class FirstLast(Uniform):
    """The first and the last layer apart from the others."""

    def rules(self, tensors: Sequence[TensorInfo], bits: int) -> list[Rule]:
        """The edges, then all."""
        edges = Rule(label="first and last layer", names=edge_weights(tensors), bits=self.settings.edge_bits)
        return [edges, *super().rules(tensors, bits)]


class ConvLinear(Policy):
    """Conv and linear weights apart."""

    def rules(self, tensors: Sequence[TensorInfo], bits: int) -> list[Rule]:
        """A rule for each kind."""
        widths = {"conv": self.settings.conv_bits or bits, "linear": self.settings.linear_bits or bits}
        return [Rule(label=f"{kind} weights", kinds=(kind,), roles=("weight",), bits=width) for kind, width in widths.items()]

    def notes(self, rows: Sequence[PlanRow], idle: Sequence[Rule]) -> list[str]:
        """A kind that the network does not have, too."""
        return [*super().notes(rows, idle), *(f"the network has no {rule.label}" for rule in idle)]


class Rules(Policy):
    """The user's own."""

    def rules(self, tensors: Sequence[TensorInfo], bits: int) -> list[Rule]:
        """As given."""
        return [_compile_rule(number, rule, bits) for number, rule in enumerate(self.settings.own_rules, start=1)]


class Document002(Policy):
    """What the code of that document selects."""

    def rules(self, tensors: Sequence[TensorInfo], bits: int) -> list[Rule]:
        """By name, as it does."""
        names = frozenset(info.name for info in tensors if "running" not in info.name)
        return [Rule(label="no running in the key", names=names, bits=self.settings.linear_bits or bits)]

    def notes(self, rows: Sequence[PlanRow], idle: Sequence[Rule]) -> list[str]:
        """What that code would have done to tensors that are left alone here."""
        constants, notes = _constants(rows), []
        counters = [row.info.name for row in rows if row.info.role == "counter" and "running" not in row.info.name]
        if constants:
            notes.append(f"document 002 would have turned {len(constants)} constant tensors into NaN (0/0): {some(constants)}")
        if counters:
            notes.append(
                f"document 002 would have turned {len(counters)} int64 counters into NaN, stored as integers: {some(counters)}"
            )
        notes.append("document 002 quantizes again, with linear_bits, whatever its tests for features and classifier had chosen")
        return notes


def policy_of(settings: PolicySettings) -> Policy:
    """The code of a policy."""
    code = settings.info.load()
    assert isinstance(code, type) and issubclass(code, Policy), code
    return code(settings)


def _constants(rows: Sequence[PlanRow]) -> list[str]:
    return [row.info.name for row in rows if row.reason == CONSTANT]


def _compile_rule(number: int, rule: RuleSettings, bits: int) -> Rule:
    """One of the user's rules; without a kind or `role: any`, norm layers are left out."""
    parts = [f"match={rule.match}"]
    parts += [f"kind={rule.kind}"] if rule.kind else []
    parts += [f"role={rule.role}"] if rule.role != "weight" else []
    kinds = (rule.kind,) if rule.kind else () if rule.role == "any" else ALL_BUT_NORM
    return Rule(
        label=f"rule {number}: {' '.join(parts)}",
        pattern=rule.match,
        kinds=kinds,
        roles=() if rule.role == "any" else (rule.role,),
        bits=rule.bits or (bits if rule.role != ACTIVATION else None),
        keep=rule.keep,
    )
