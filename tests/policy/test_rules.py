"""Rules: what they match, in which order, and what is said where they decide nothing."""

import pytest

from qexp.base.errors import UserError
from qexp.base.types import TensorInfo
from qexp.config.policy import PolicySettings, RuleSettings
from qexp.policy.policies import policy_of
from qexp.policy.rules import match_rules, unread_settings


def tensor(name, kind="conv", role="weight", order=0, **other):
    options = {"module": name.rpartition(".")[0], "module_type": kind, "shape": (4, 4), "dtype": "float32"} | other
    return TensorInfo(name=name, kind=kind, role=role, order=order, **options)


NETWORK = (
    tensor("head.weight", "linear", order=9),  # defined first, executed last
    tensor("head.bias", "linear", "bias", order=9),
    tensor("stem.conv.weight", order=0),
    tensor("stem.bn.weight", "norm", order=1),
    tensor("stem.bn.bias", "norm", "bias", order=1),
    tensor("stem.bn.running_mean", "norm", "statistic", order=1),
    tensor("stem.bn.num_batches_tracked", "norm", "counter", order=1, dtype="int64", shape=()),
    tensor("layer1.0.conv.weight", order=2),
    tensor("layer1.1.conv.weight", order=3),
    tensor("aux.weight", "linear", order=-1),
    tensor("scale", "other", "other", order=4),
    tensor("kernel", "other", order=4),
)


def chosen(*rules, bits=4):
    """Tensor name -> bits, or 'keep'."""
    policy = PolicySettings(name="rules", rules=list(rules))
    matched = match_rules(policy_of(policy).rules(NETWORK, bits), NETWORK, strict=True)
    return {name: "keep" if rule.keep else rule.bits for name, rule in matched.items()}


def named(name, **settings):
    return {
        k: r.bits
        for k, r in match_rules(policy_of(PolicySettings(name=name, **settings)).rules(NETWORK, 4), NETWORK, strict=False).items()
    }


def test_named_policies():
    convs = {"stem.conv.weight": 4, "layer1.0.conv.weight": 4, "layer1.1.conv.weight": 4}
    assert named("uniform") == {**convs, "head.weight": 4, "aux.weight": 4}
    assert named("conv_linear", linear_bits=8) == {**convs, "head.weight": 8, "aux.weight": 8}
    assert named("conv_linear", conv_bits=2) == {**dict.fromkeys(convs, 2), "head.weight": 4, "aux.weight": 4}
    assert named("first_last") == {**convs, "stem.conv.weight": 8, "head.weight": 8, "aux.weight": 4}
    everything = {info.name for info in NETWORK if info.role not in ("statistic", "counter")}
    assert named("document_002", linear_bits=3) == dict.fromkeys(everything, 3)


def test_first_match_wins():
    assert chosen(
        RuleSettings(match="layer1.0.*", bits=2), RuleSettings(match="layer1.*", keep=True), RuleSettings(kind="conv")
    ) == {
        "layer1.0.conv.weight": 2,
        "layer1.1.conv.weight": "keep",
        "stem.conv.weight": 4,
    }


def test_pattern_over_key_or_module():
    assert chosen(RuleSettings(match="stem.conv")) == chosen(RuleSettings(match="stem.conv.weight")) == {"stem.conv.weight": 4}
    assert chosen(RuleSettings(match="layer1.[01].*"), RuleSettings(match="kern?l", bits=1))["kernel"] == 1


def test_norm_only_on_request():
    assert set(chosen(RuleSettings())) == {
        "head.weight",
        "stem.conv.weight",
        "layer1.0.conv.weight",
        "layer1.1.conv.weight",
        "aux.weight",
        "kernel",
    }
    assert set(chosen(RuleSettings(kind="norm"))) == {"stem.bn.weight"}
    assert set(chosen(RuleSettings(kind="norm", role="any"))) == {"stem.bn.weight", "stem.bn.bias"}
    assert set(chosen(RuleSettings(role="bias"))) == {"head.bias"}
    assert set(chosen(RuleSettings(role="any"))) == {info.name for info in NETWORK if info.role not in ("statistic", "counter")}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (RuleSettings(match="layer1.0.cnov.weight"), "Nearest: layer1.0.conv.weight"),
        (RuleSettings(match="layer1"), r"Did you mean layer1\.\*\?"),
        (RuleSettings(match="zzz"), "Nearest: head.weight, head.bias, stem.conv.weight"),
        (RuleSettings(match="stem.bn.*"), "Scale and shift of norm layers are matched by kind: norm"),
        (
            RuleSettings(match="*running*", role="any"),
            "fits 1 tensors, but these are: norm statistic. No rule quantizes statistics",
        ),
        (RuleSettings(match="head.*", kind="conv"), "these are: linear bias, linear weight.$"),
        (RuleSettings(kind="embedding"), "fits 12 tensors"),
    ],
)
def test_a_rule_that_matches_nothing(rule, message):
    with pytest.raises(UserError, match=message) as caught:
        chosen(RuleSettings(match="stem.conv"), rule)
    assert str(caught.value).startswith(f"policy.rules[1]=rule 2: match={rule.match}")


def test_a_shadowed_rule():
    rules = [RuleSettings(match="layer1.0.*"), RuleSettings(match="layer1.1.*"), RuleSettings(match="layer1.*", bits=2)]
    with pytest.raises(UserError, match=r"policy.rules\[2\].*All 2 tensors that it matches are taken by rule 1, 2"):
        chosen(*rules)
    twice = RuleSettings(match="kernel")
    with pytest.raises(UserError, match=r"policy.rules\[1\].*taken by rule 1;"):
        chosen(twice, twice)


def test_first_and_last_layer_with_all_their_names():
    tied = (tensor("a.weight"), tensor("b.weight", order=1), tensor("c.weight", tied_to="a.weight"))
    rules = policy_of(PolicySettings(name="first_last")).rules(tied, 4)
    assert {name: rule.bits for name, rule in match_rules(rules, tied, strict=False).items()} == dict.fromkeys(
        ("a.weight", "b.weight", "c.weight"), 8
    )


def test_unread_settings():
    assert unread_settings(PolicySettings()) == []
    assert unread_settings(PolicySettings(linear_bits=4, edge_bits=6)) == [
        "policy.linear_bits is not used by policy=uniform",
        "policy.edge_bits is not used by policy=uniform",
    ]
    assert unread_settings(PolicySettings(name="conv_linear", linear_bits=4, conv_bits=4)) == []
    assert unread_settings(PolicySettings(name="document_002", linear_bits=4, conv_bits=2, rules=[RuleSettings()])) == [
        "policy.conv_bits is not used by policy=document_002",
        "policy.rules is not used by policy=document_002",
    ]
