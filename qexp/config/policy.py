"""Settings of the policy, which tensor gets which width; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qexp.base.checks import Bits, check_bounds
from qexp.base.errors import UserError

PolicyName = Literal["uniform", "conv_linear", "first_last", "rules", "document_002"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


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
        name: `uniform` gives every conv and linear weight `bits`; `conv_linear` gives them `conv_bits` and `linear_bits`;
            `first_last` gives the first and last layer `edge_bits`; `rules` reads `rules`; `document_002` selects what that
            document's code selects.
        conv_bits: of conv weights; None takes the root `bits`.
        linear_bits: of linear weights; None takes the root `bits`.
        edge_bits: of the first and last layer.
        rules: ordered; the first match wins; a rule that matches nothing is an error.
    """

    name: PolicyName = "uniform"
    conv_bits: Bits | None = None
    linear_bits: Bits | None = None
    edge_bits: Bits = 8
    rules: list[RuleSettings] | None = None

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "policy")
        if self.name == "rules" and not self.rules:
            raise UserError("policy.rules", self.rules, allowed="a list of rules, for policy=rules")
