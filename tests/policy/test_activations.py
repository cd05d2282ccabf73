"""Which activation gets which quantizer, and what the plan prints and hashes of it."""

from functools import cache

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.types import ActivationInfo
from qexp.config.policy import PolicySettings, RuleSettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings
from qexp.models.cifar_resnet import CifarResNet
from qexp.nn.activation_points import activations
from qexp.nn.graph import trace
from qexp.nn.inventory import as_trained, inventory
from qexp.policy.activations import NOT_ENTERED, NOT_EXECUTED
from qexp.policy.plan import make_plan
from qexp.policy.table import print_plan

IMAGE = torch.zeros(1, 3, 32, 32)


@cache
def resnet20():
    model = CifarResNet(20)
    return as_trained(inventory(model, IMAGE)), activations(trace(model, torch.rand_like(IMAGE)))


def plan(policy="uniform", *, mode="int", rules=None, edge_bits=8, extra=(), **activation):
    tensors, points = resnet20()
    return make_plan(
        tensors,
        policy=PolicySettings(name=policy, rules=rules, edge_bits=edge_bits),
        quant=QuantSettings(name="affine", activation=ActivationQuantSettings(**activation)),
        bits=4,
        mode=mode,
        activations=(*points, *extra),
    )


def format_plan(planned, policy=""):
    printed = print_plan(planned, policy=policy)
    return "\n".join([printed.summary, *printed.body])


def test_without_a_width_there_are_no_rows_and_the_hash_is_as_ever():
    tensors, _ = resnet20()
    bare = make_plan(tensors, policy=PolicySettings(), quant=QuantSettings(name="affine"), bits=4, mode="int")
    assert plan().activations == () and plan() == bare
    specs = {name: spec.identity for name, spec in bare.quantized.items()}
    assert bare.hash == hash_json({"specs": specs, "mode": "int", "input": "none"})
    assert "A32 (activations fp32)" in format_plan(bare)


def test_every_setting_that_counts_is_in_the_hash():
    ways = [
        {},
        {"bits": 8},
        {"bits": 4},
        {"bits": 8, "scheme": "symmetric"},
        {"bits": 8, "granularity": "per_channel"},
        {"bits": 8, "dynamic": True},
        {"bits": 8, "rounding": "floor"},
        {"bits": 8, "arithmetic": "divide"},
    ]
    assert len({plan(**way).hash for way in ways}) == len(ways)
    assert plan(bits=8).hash == plan(bits=8).hash
    assert plan(bits=8, mode="float").hash != plan(bits=8).hash


def test_uniform_quantizes_every_activation_point():
    planned = plan(bits=8)
    assert len(planned.quantized_activations) == 30
    assert {(spec.bits, spec.scheme, spec.granularity, spec.mode) for spec in planned.quantized_activations.values()} == {
        (8, "affine", "per_tensor", "int")
    }
    assert {spec.mode for spec in plan(bits=8, mode="float").quantized_activations.values()} == {"float"}


def test_first_last_gives_edge_bits_to_what_enters_them():
    quantized = plan("first_last", bits=4, edge_bits=6).quantized_activations
    assert {name for name, spec in quantized.items() if spec.bits == 6} == {"input", "mean"}
    assert {spec.bits for spec in quantized.values()} == {4, 6}


def test_rules_come_first_and_the_rest_takes_the_setting():
    weights = RuleSettings(bits=3)
    first = RuleSettings(role="activation", match="input", bits=16)
    second = RuleSettings(role="activation", match="layer3.2.conv*", kind="conv", bits=2)
    third = RuleSettings(role="activation", match="layer*.bn2", keep=True)
    planned = plan("rules", rules=[weights, first, second, third], bits=8)
    widths = {row.info.name: row.spec.bits if row.spec else None for row in planned.activations}
    assert widths["input"] == 16 and widths["layer3.1.relu_1"] == widths["layer3.2.relu"] == 2
    assert widths["layer1.0.bn2"] is None and widths["relu"] == 8
    assert {spec.bits for spec in planned.quantized.values()} == {3}
    rules = {row.info.name: row.rule for row in planned.activations}
    assert rules["input"] == "rule 2: match=input role=activation"


def test_rules_alone_may_ask_and_weights_may_stay():
    planned = plan("rules", rules=[RuleSettings(role="activation", match="input", bits=8)])
    assert list(planned.quantized_activations) == ["input"] and not planned.quantized
    assert "W32A8" in format_plan(planned)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "inptu", "bits": 8}, r"rules\[1\].*Did you mean input"),
        ({"match": "layer1.0.bn2", "kind": "linear", "bits": 8}, r"rules\[1\].*matches an activation"),
        ({"match": "layer1.*"}, r"rules\[1\].*quant.activation.bits is null"),
    ],
)
def test_rules_that_decide_nothing_are_errors(rule, message):
    with pytest.raises(UserError, match=message):
        plan("rules", rules=[RuleSettings(), RuleSettings(role="activation", **rule)])


def test_a_shadowed_rule_is_an_error():
    rules = [RuleSettings(role="activation", bits=8), RuleSettings(role="activation", match="input", bits=4)]
    with pytest.raises(UserError, match=r"rules\[1\].*taken by earlier rules"):
        plan("rules", rules=rules)


def test_widths_and_kinds_that_do_not_exist():
    for settings in ({"bits": 17}, {"bits": 1, "scheme": "symmetric"}, {"bits": 0}):
        with pytest.raises(UserError, match="quant.activation.bits"):
            ActivationQuantSettings(**settings)
    with pytest.raises(UserError, match="at least 2 for quant.activation.scheme=symmetric"):
        plan("first_last", bits=4, scheme="symmetric", edge_bits=1)
    with pytest.raises(UserError, match="policy.rules.kind=norm"):
        RuleSettings(role="activation", kind="norm")


def test_unsigned_grids_only_where_nothing_is_negative():
    planned = plan(bits=8, scheme="unsigned_symmetric")
    schemes = {name: spec.scheme for name, spec in planned.quantized_activations.items()}
    assert schemes["relu"] == schemes["mean"] == "unsigned_symmetric"
    assert schemes["input"] == schemes["layer1.0.bn2"] == "symmetric_restricted"
    assert any("10 activations may be negative" in note for note in planned.notes)


def test_what_is_left_float_says_why():
    unused = ActivationInfo(name="aux.fc", layers=("aux.fc.weight",), kinds=("linear",), order=-1, executed=False)
    inside = ActivationInfo(name="attention.*", operator="attention", entered=False)
    planned = plan(bits=8, extra=(unused, inside))
    assert {row.reason for row in planned.activations if row.spec is None} == {NOT_EXECUTED, NOT_ENTERED}
    text = format_plan(planned)
    assert "1 x activations: not executed by a forward pass (aux.fc)" in text and "(attention.*)" in text
    assert planned.hash == plan(bits=8).hash


def test_the_table_lists_every_place():
    text = format_plan(plan("first_last", bits=4), policy="first_last")
    assert text.startswith("W4/8A4/8 (activations static affine per_tensor), mode int")
    assert "layer1.0.bn2     conv+norm       layer1.0.add" in text
    assert "enters the first or last layer" in text
    first, *others = plan(bits=4).activations
    assert len(others) == 29 and first.info.name == "input" and first.info.layers == ("conv1.weight",)
    assert first.spec is not None and first.spec.bits == 4


def test_a_network_without_known_activations_is_an_error():
    tensors, _ = resnet20()
    quant = QuantSettings(activation=ActivationQuantSettings(bits=8))
    with pytest.raises(UserError, match="quant.activation.bits=8"):
        make_plan(tensors, policy=PolicySettings(), quant=quant, bits=8, mode="int")


def test_half_does_not_use_them_and_says_so():
    tensors, points = resnet20()
    quant = QuantSettings(activation=ActivationQuantSettings(bits=8))
    planned = make_plan(tensors, policy=PolicySettings(), quant=quant, bits=8, mode="half", activations=points)
    assert not planned.activations and any("quant.activation.bits" in note for note in planned.notes)
