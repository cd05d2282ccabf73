"""Plans of real networks: what is quantized, what is left alone and why, and what is said about it."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from qexp.base.errors import UserError
from qexp.base.torchvision_compat import torchvision
from qexp.base.types import QuantSpec
from qexp.config.policy import PolicySettings, RuleSettings
from qexp.config.quant import QuantSettings, WeightQuantSettings
from qexp.models.cifar_resnet import CifarResNet
from qexp.nn.inventory import inventory
from qexp.policy.plan import CONSTANT, COUNTER, NOT_EXECUTED, STATISTIC, make_plan

CONF = Path(__file__).parents[2] / "conf" / "policy"
IMAGE = torch.zeros(1, 3, 64, 64)


def trained(model):
    """As after an epoch: no tensor of two elements and more is constant."""
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator) / 100)
    return model


@cache
def tensors(name):
    """Inventory of a network by name."""
    models = torchvision().models
    builders = {
        "resnet20": lambda: CifarResNet(20),
        "googlenet": lambda: models.googlenet(num_classes=10, init_weights=False),
    }
    model = builders[name]() if name in builders else getattr(models, name)(num_classes=10)
    return inventory(trained(model), IMAGE)


def plan(infos, policy="uniform", *, bits=8, mode="int", quant=None, **settings):
    infos = tensors(infos) if isinstance(infos, str) else infos
    return make_plan(infos, policy=PolicySettings(name=policy, **settings), quant=quant or QuantSettings(), bits=bits, mode=mode)


def reasons(result):
    counts = {}
    for row in result.rows:
        if row.spec is None:
            counts[row.reason] = counts.get(row.reason, 0) + 1
    return counts


@pytest.mark.parametrize(("name", "num_layers"), [("resnet20", 20), ("resnet18", 21), ("resnet50", 54), ("mobilenet_v2", 53)])
def test_uniform(name, num_layers):
    result = plan(name, bits=4)
    assert [row.info for row in result.rows] == list(tensors(name))
    assert len(result.quantized) == num_layers
    assert set(result.quantized.values()) == {QuantSpec(scheme="linear", bits=4)}
    assert all(name.endswith(".weight") for name in result.quantized)
    num_norms = sum(row.info.role == "counter" for row in result.rows)
    assert reasons(result) == {
        "scale and shift of a norm layer: not quantized unless a rule asks": 2 * num_norms,
        STATISTIC: 2 * num_norms,
        COUNTER: num_norms,
        "bias: not quantized unless a rule asks": 1,
    }
    assert result.notes == ()


def test_every_row_has_a_spec_or_a_reason():
    for policy in ("uniform", "conv_linear", "first_last", "document_002"):
        for mode in ("int", "float", "half"):
            for row in plan("googlenet", policy, mode=mode).rows:
                assert (row.spec is None) == bool(row.reason), row
                assert row.spec is None or row.rule


def test_googlenet_auxiliary_heads_are_not_executed():
    result = plan("googlenet")
    idle = [row.info.name for row in result.rows if row.reason == NOT_EXECUTED]
    assert {name.split(".")[0] for name in idle} == {"aux1", "aux2"}
    assert not any(name.startswith("aux") for name in result.quantized)
    assert len(result.quantized) == 58


def test_conv_linear_by_module_type():
    result = plan("mobilenet_v2", "conv_linear", conv_bits=4, linear_bits=6, bits=8)
    widths = {name: spec.bits for name, spec in result.quantized.items()}
    assert widths.pop("classifier.1.weight") == 6
    assert set(widths.values()) == {4}
    convolutional = inventory(nn.Conv2d(3, 4, 3), IMAGE)
    assert plan(convolutional, "conv_linear", linear_bits=4).notes == ("the network has no linear weights",)


def test_first_last_by_execution_not_by_definition():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(8, 8)
            self.head = nn.Linear(8, 10)
            self.middle = nn.Conv2d(4, 8, 3)
            self.stem = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.head(self.middle(self.stem(x)).mean((2, 3)))

    result = plan(inventory(Reversed(), IMAGE), "first_last", bits=2, edge_bits=6)
    assert {name: spec.bits for name, spec in result.quantized.items()} == {
        "head.weight": 6,
        "middle.weight": 2,
        "stem.weight": 6,
    }


def test_rules_reach_what_named_policies_leave_alone():
    rules = [
        RuleSettings(match="layer1.*", keep=True),
        RuleSettings(kind="norm", role="any", bits=8),
        RuleSettings(role="bias", bits=6),
        RuleSettings(kind="conv"),
    ]
    result = plan("resnet20", "rules", bits=3, rules=rules)
    widths = [spec.bits for spec in result.quantized.values()]
    assert (widths.count(8), widths.count(6), widths.count(3)) == (38, 1, 13)
    assert reasons(result) == {"kept as a rule asks": 6, STATISTIC: 38, COUNTER: 19, "matched by no rule": 1}
    rule_of = {row.info.name: row.rule for row in result.rows}
    assert rule_of["linear.bias"] == "rule 3: match=* role=bias"


def test_document_002_selects_all_but_running():
    result = plan("resnet20", "document_002", bits=8, linear_bits=4)
    expected = {info.name for info in tensors("resnet20") if "running" not in info.name and info.role != "counter"}
    assert set(result.quantized) == expected
    assert {spec.bits for spec in result.quantized.values()} == {4}
    text = "\n".join(result.notes)
    assert "19 int64 counters into NaN" in text and "bn1.num_batches_tracked" in text and "11 more" in text
    assert "constant" not in text


def test_document_002_names_what_it_would_have_destroyed():
    """A fresh network: BN scales are 1 and shifts 0, where the document's formula divides 0 by 0."""
    fresh = inventory(CifarResNet(20), IMAGE)
    result = plan(fresh, "document_002")
    assert len(result.quantized) == 20
    assert reasons(result)[CONSTANT] == 39
    assert any("39 constant tensors into NaN (0/0): bn1.weight, bn1.bias," in note for note in result.notes)
    assert plan(fresh).notes == ()


def test_constant_weights_are_left_alone_and_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    nn.init.zeros_(model[1].weight)
    result = plan(inventory(model, IMAGE))
    assert list(result.quantized) == ["0.weight"]
    assert result.notes == ("1 chosen tensors are constant and stay as they are: 1.weight",)
    nn.init.zeros_(model[0].weight)
    with pytest.raises(UserError, match="Its 2 conv and linear weights are left alone: constant tensor"):
        plan(inventory(model, IMAGE))


def test_per_channel_axes():
    model = nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.Conv2d(6, 2, 1), nn.Flatten(), nn.LazyLinear(5))
    model(IMAGE)
    quant = QuantSettings(
        name="symmetric", weight=WeightQuantSettings(granularity="per_channel", rounding="half_up", arithmetic="divide")
    )
    infos = inventory(model, IMAGE)
    result = plan(infos, "rules", quant=quant, rules=[RuleSettings(role="any")])
    common = {"scheme": "symmetric", "bits": 8, "rounding": "half_up", "arithmetic": "divide"}
    assert result.quantized["0.weight"] == QuantSpec(granularity="per_channel", axis=1, **common)
    assert result.quantized["1.weight"] == result.quantized["3.weight"] == QuantSpec(granularity="per_channel", axis=0, **common)
    assert result.quantized["0.bias"] == QuantSpec(granularity="per_tensor", **common)
    assert result.notes == ("3 vectors are quantized per tensor, having one element per channel: 0.bias, 1.bias, 3.bias",)
    assert plan(infos).quantized["0.weight"].axis == 0


def test_half_casts_every_floating_tensor():
    result = plan("resnet20", "first_last", bits=3, mode="half", quant=QuantSettings(input="int"))
    assert set(result.quantized.values()) == {QuantSpec(scheme="half", bits=16, mode="half")}
    assert set(result.quantized) == {info.name for info in tensors("resnet20") if info.role != "counter"}
    assert (result.mode, result.input_quant) == ("half", "int")
    assert "policy=first_last" in result.notes[0]
    assert plan("resnet20", bits=4, mode="half").hash == plan("resnet20", "document_002", bits=8, mode="half").hash


def test_float_is_a_control_of_the_same_tensors():
    control, rounded = plan("resnet20", mode="float"), plan("resnet20")
    assert control.quantized.keys() == rounded.quantized.keys()
    assert {spec.mode for spec in control.quantized.values()} == {"float"}
    assert control.hash != rounded.hash


def test_unread_settings_become_notes():
    assert plan("resnet20", linear_bits=4).notes == ("policy.linear_bits is not used by policy=uniform",)
    assert plan("resnet20", linear_bits=4).hash == plan("resnet20").hash


class Kernels(nn.Module):
    """Parameters of no conv or linear layer, used by functions only."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(10, 3, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(x, self.kernel).mean((2, 3))


def test_nothing_to_quantize():
    infos = inventory(Kernels(), IMAGE)
    with pytest.raises(
        UserError, match="policy=uniform: .*no conv or linear layer. Other parameters are reached by policy=rules.*kernel"
    ):
        plan(infos)
    assert list(plan(infos, "rules", rules=[RuleSettings(kind="other")]).quantized) == ["kernel"]
    with pytest.raises(UserError, match="no conv or linear layer.$"):
        plan(inventory(nn.AdaptiveAvgPool2d(1), IMAGE))
    with pytest.raises(UserError):
        plan(inventory(nn.AdaptiveAvgPool2d(1), IMAGE), mode="half")
    with pytest.raises(UserError, match="left alone: kept as a rule asks"):
        plan("resnet20", "rules", rules=[RuleSettings(keep=True)])


def tied_network():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    return inventory(model, IMAGE)


def test_tied_weights_share_their_quantizer():
    rules = [RuleSettings(match="0.weight", bits=4), RuleSettings(role="bias")]
    result = plan(tied_network(), "rules", rules=rules)
    assert result.quantized["1.weight"] == result.quantized["0.weight"]
    assert {row.info.name: row.rule for row in result.rows}["1.weight"] == "shares storage with 0.weight"
    for second in (RuleSettings(match="1.weight", bits=2), RuleSettings(match="1.weight", keep=True)):
        with pytest.raises(UserError, match="share one storage: 0.weight, 1.weight"):
            plan(tied_network(), "rules", rules=[RuleSettings(match="0.weight", bits=4), second])


def test_room_imports_no_torch():
    code = "import sys, qexp.policy.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONF.parents[1], check=False).returncode == 0


def test_the_base_holds_the_defaults():
    base = yaml.safe_load((CONF / "_base.yaml").read_text())
    assert base == {"name": "???"} | {
        key: getattr(PolicySettings(), key) for key in ("conv_bits", "linear_bits", "edge_bits", "rules")
    }
