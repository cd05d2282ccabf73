"""Settings of the policy, which tensor gets which width; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qexp.base.catalog import Catalog, Info
from qexp.base.checks import Bits, check_bounds
from qexp.base.errors import UserError, choose


@dataclass(frozen=True, kw_only=True)
class PolicyInfo(Info):
    """A policy.

    Args:
        name: as in `policy=NAME`.
        summary: one line for people.
        code: import string of a class, `qexp.policy.policies.Policy`.
        reads: fields of `PolicySettings` that it reads; with `rules` the user's own decide, which must all match something.
        label: what labels of variants show behind its name, with the fields that it reads; an unset width is `bits`.
        edge_activations: what enters the first and the last layer gets `edge_bits`.
        left_alone: why a tensor is left alone that no rule takes; empty where its kind and role say why.
    """

    reads: tuple[str, ...]
    label: str
    edge_activations: bool
    left_alone: str


POLICIES = Catalog(
    "policy",
    PolicyInfo,
    (
        PolicyInfo(
            name="uniform", summary="Every conv and linear weight gets bits.", code="qexp.policy.policies:Uniform", reads=(),
            label="", edge_activations=False, left_alone="",
        ),
        PolicyInfo(
            name="conv_linear",
            summary="Conv weights get policy.conv_bits, linear weights policy.linear_bits; by module type, not by name.",
            code="qexp.policy.policies:ConvLinear", reads=("conv_bits", "linear_bits"), label="c{conv_bits} l{linear_bits}",
            edge_activations=False, left_alone="",
        ),
        PolicyInfo(
            name="first_last", summary="The first and the last layer executed get policy.edge_bits, those between bits.",
            code="qexp.policy.policies:FirstLast", reads=("edge_bits",), label="e{edge_bits}", edge_activations=True,
            left_alone="",
        ),
        PolicyInfo(
            name="rules",
            summary="Your own ordered list, policy.rules; the first match wins; a rule that matches nothing is an error.",
            code="qexp.policy.policies:Rules", reads=("rules",), label="", edge_activations=False,
            left_alone="matched by no rule",
        ),
        PolicyInfo(
            name="document_002",
            summary="What that document's code selects: every entry of the state dict without running in its key.",
            code="qexp.policy.policies:Document002", reads=("linear_bits",), label="", edge_activations=False,
            left_alone="running in the key",
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """One line of a policy: the tensors it matches and what happens to them; the first match wins.

    Args:
        match: shell pattern over the state-dict key or the module's name (`layer1.*`, `*.conv2.weight`).
        kind: only tensors of such modules; None any but `norm`, whose scale and shift must be asked for by `kind: norm` or
            `role: any`.
        role: only such tensors; `any` covers all but statistics and counters, which no rule reaches. `activation` is about the
            network's activations: `match` fits the name of an activation point or of an operator that reads it, `kind` is
            a reader's.
        bits: width; None takes the root `bits`, of an activation `quant.activation.bits`.
        keep: leave the tensor as it is.
    """

    match: str = "*"
    kind: Literal["conv", "linear", "norm", "embedding", "other"] | None = None
    role: Literal["weight", "bias", "any", "activation"] = "weight"
    bits: Bits | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "policy.rules")
        if self.keep and self.bits is not None:
            raise UserError("policy.rules.bits", self.bits, allowed="null in a rule with keep=true")
        if self.role == "activation" and self.kind not in (None, "conv", "linear"):
            raise UserError("policy.rules.kind", self.kind, allowed="null, conv or linear in a rule with role=activation")


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Which tensor gets which width.

    Args:
        name: one of `POLICIES`.
        conv_bits: of conv weights; None takes the root `bits`.
        linear_bits: of linear weights; None takes the root `bits`.
        edge_bits: of the first and last layer.
        rules: ordered; the first match wins; a rule that matches nothing is an error.
    """

    name: str = "uniform"
    conv_bits: Bits | None = None
    linear_bits: Bits | None = None
    edge_bits: Bits = 8
    rules: list[RuleSettings] | None = None

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "policy")
        choose("policy.name", self.name, POLICIES)
        if "rules" in self.info.reads and not self.rules:
            raise UserError("policy.rules", self.rules, allowed=f"a list of rules, for policy={self.name}")

    @property
    def info(self) -> PolicyInfo:
        """The row of the policy."""
        return POLICIES[self.name]

    @property
    def own_rules(self) -> tuple[RuleSettings, ...]:
        """The user's rules, where the policy reads them."""
        return tuple(self.rules or ()) if "rules" in self.info.reads else ()
