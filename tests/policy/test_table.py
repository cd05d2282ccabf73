"""How a plan is printed, stored and weighed."""

import json

import pytest
import torch

from qexp.base.types import Plan, PlanRow, QuantSpec, TensorInfo
from qexp.config.policy import PolicySettings
from qexp.config.quant import QuantSettings, WeightQuantSettings
from qexp.models.cifar_resnet import CifarResNet
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan
from qexp.policy.table import plan_rows, plan_size_bytes, print_plan


@pytest.fixture(scope="module")
def tensors():
    return inventory(CifarResNet(20), torch.zeros(1, 3, 32, 32))


def plan(tensors, *, bits=8, mode="int", policy=None, **quant):
    return make_plan(tensors, policy=policy or PolicySettings(), quant=QuantSettings(**quant), bits=bits, mode=mode)


def format_plan(planned, policy=""):
    printed = print_plan(planned, policy=policy)
    return "\n".join([printed.summary, *printed.body])


def test_printed_plan(tensors):
    lines = format_plan(plan(tensors, policy=PolicySettings(linear_bits=4)), policy="uniform").splitlines()
    assert lines[0].startswith(
        "W8A32 (activations fp32), mode int, scheme linear per_tensor, policy uniform: 20 of 116 tensors, 99.5 % "
    )
    assert lines[1].split() == ["tensor", "shape", "bits", "scheme", "rule", "params", "%"]
    assert lines[2].split() == ["conv1.weight", "16x3x3x3", "8", "linear", "conv", "and", "linear", "weights", "0.16"]
    assert len({len(line) for line in lines[1:22]}) == 1
    assert lines[22:] == [
        "left alone:",
        "  38 x scale and shift of a norm layer: not quantized unless a rule asks (bn1.weight, ...)",
        "  38 x BN statistic (bn1.running_mean, ...)",
        "  19 x counter (bn1.num_batches_tracked, ...)",
        "  1 x bias: not quantized unless a rule asks (linear.bias)",
        "note: policy.linear_bits is not used by policy=uniform",
    ]


def test_summary_of_other_plans(tensors):
    mixed = format_plan(plan(tensors, bits=2, policy=PolicySettings(name="first_last"), input="int"))
    assert mixed.startswith("W2/8A32 (activations fp32), mode int, scheme linear per_tensor, input int: 20 of 116")
    assert format_plan(plan(tensors, mode="half")).startswith(
        "W16A16 (fp16), mode half: 97 of 116 tensors, 100.0 % of parameters"
    )
    assert "mode float (a control: not rounded)" in format_plan(plan(tensors, mode="float"))
    channels = format_plan(plan(tensors, weight=WeightQuantSettings(granularity="per_channel")))
    assert "scheme linear per_channel: 20 of" in channels and "linear per_channel axis 0" in channels


def test_shares_add_up(tensors):
    shares = [float(line.split()[-1]) for line in format_plan(plan(tensors)).splitlines()[2:22]]
    assert sum(shares) == pytest.approx(99.5, abs=0.1)


def test_rows_for_a_file(tensors):
    result = plan(tensors, bits=4)
    rows = json.loads(json.dumps(plan_rows(result)))
    assert [row["name"] for row in rows] == [info.name for info in tensors]
    assert (rows[0]["bits"], rows[0]["scheme"], rows[0]["reason"], rows[0]["shape"]) == (4, "linear", "", [16, 3, 3, 3])
    assert (rows[3]["name"], rows[3]["bits"], rows[3]["reason"]) == ("bn1.running_mean", None, "BN statistic")
    assert sum(row["size_bytes"] for row in rows) == plan_size_bytes(result)


def row(shape, spec=None, dtype="float32", tied_to=None):
    info = TensorInfo(name="a", module="", module_type="", kind="conv", role="weight", shape=shape, dtype=dtype, tied_to=tied_to)
    return PlanRow(info, spec, "")


@pytest.mark.parametrize(
    ("item", "num_bytes"),
    [
        (row((3, 5)), 60),
        (row((), dtype="int64"), 8),
        (row((3,), dtype="float16"), 6),
        (row((3, 5), QuantSpec(scheme="linear", bits=3)), 6 + 8),  # 45 bits
        (row((3, 5), QuantSpec(scheme="linear", bits=8, granularity="per_channel")), 15 + 24),
        (row((3, 5), QuantSpec(scheme="linear", bits=8, granularity="per_channel", axis=1)), 15 + 40),
        (row((3, 5), QuantSpec(scheme="linear", bits=8, mode="float")), 60),
        (row((3, 5), QuantSpec(scheme="half", bits=16, mode="half")), 30),
        (row((3, 5), tied_to="b"), 0),
    ],
)
def test_size(item, num_bytes):
    assert plan_size_bytes(Plan((item,))) == num_bytes


def test_size_of_a_network(tensors):
    stored = sum(value.numel() * value.element_size() for value in CifarResNet(20).state_dict().values())
    weights = sum(info.num_elements for info in tensors if info.kind in ("conv", "linear") and info.role == "weight")
    assert plan_size_bytes(plan(tensors)) == stored - 3 * weights + 20 * 8
    assert plan_size_bytes(plan(tensors, mode="float")) == stored


def test_a_network_without_parameters_prints():
    assert "0.0 %" in format_plan(Plan((), mode="int"))
