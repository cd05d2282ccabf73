"""From a quantized network to the codes of its weights: after training, as AdaRound left them, in training, or none."""

import copy

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.deploy.coded_network import code_network
from qexp.deploy.weight_codes import weight_codes
from qexp.nn.graph import GraphNetwork, trace
from qexp.quant.schemes import quantize_


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x):
        return self.head(torch.conv2d(self.norm(self.conv(x)), self.kernel).mean((2, 3)))


EIGHT = QuantSpec(scheme="symmetric_restricted", bits=8, granularity="per_channel")
EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@torch.no_grad()
def rounded(net, specs, limits=None):
    twin = copy.deepcopy(net)
    for name, spec in specs.items():
        tensor = dict(twin.named_parameters())[name]
        quantize_(tensor, tensor.clone(), spec, (limits or {}).get(name))
    return twin


def test_codes_after_training_are_of_the_float_weights_grid(net):
    limits = {"conv.weight": (torch.full((4,), -0.1), torch.full((4,), 0.1))}
    specs = {"conv.weight": EIGHT, "kernel": EIGHT, "head.weight": QuantSpec(scheme="affine", bits=4)}
    twin = rounded(net, specs, limits)
    grids = {name: (spec, None) for name, spec in specs.items()}
    coded = code_network(twin, EXAMPLE, grids, reference=net, limits=limits)
    assert isinstance(coded.network, GraphNetwork) and not coded.kept_float
    assert list(coded.weights) == ["conv.weight", "kernel_conv2d.weight", "head.weight"], "a function is a module"
    for name, weight in zip(specs, coded.weights.values(), strict=True):
        assert torch.equal(weight.values, dict(twin.named_parameters())[name].data)
    assert coded.weights["conv.weight"].qparams.scale.max() <= 0.1 / 127 * 1.0001, "clipped as asked"


def test_codes_that_were_learned_on_the_grid_are_kept(net):
    """AdaRound rounds up or down; the grid is that of the float weight."""
    twin, expected = rounded(net, {"conv.weight": EIGHT}), weight_codes(net.conv.weight, EIGHT)
    step = torch.zeros_like(net.conv.weight)
    step[:, 0, 0, 0] = -torch.sign(expected.codes[:, 0, 0, 0])
    with torch.no_grad():
        twin.conv.weight.copy_(type(expected)(expected.codes + step.int(), expected.qparams).values)
    coded = code_network(twin, EXAMPLE, {"conv.weight": (EIGHT, None)}, reference=net)
    assert torch.equal(coded.weights["conv.weight"].codes, expected.codes + step.int())
    with torch.no_grad():
        twin.conv.weight += 1e-4
    with pytest.raises(UserError, match=r"conv\.weight=.*off their grid"):
        code_network(twin, EXAMPLE, {"conv.weight": (EIGHT, None)}, reference=net)


def test_grids_of_a_training_are_taken_as_they_are(net):
    expected = weight_codes(net.conv.weight * 0.9, EIGHT)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.conv.weight.copy_(expected.values)
    coded = code_network(twin, EXAMPLE, {"conv.weight": (EIGHT, expected.qparams)})
    assert torch.equal(coded.weights["conv.weight"].codes, expected.codes)
    assert coded.weights["conv.weight"].qparams is expected.qparams


def test_what_a_file_cannot_hold_is_named_and_stays_float(net):
    specs = {
        "conv.weight": QuantSpec(scheme="linear", bits=8),
        "head.weight": QuantSpec(scheme="affine", bits=4, granularity="per_in_out_channel"),
        "kernel": EIGHT,
        "head.bias": QuantSpec(scheme="affine", bits=8, mode="float"),
    }
    grids = {name: (spec, None) for name, spec in specs.items()}
    coded = code_network(net, EXAMPLE, grids, reference=net, constant=("kernel",))
    assert not coded.weights and list(coded.kept_float) == list(specs)
    assert coded.kept_float["conv.weight"] == "a file has no codes for linear" and "per_in_out" in coded.kept_float["head.weight"]
    assert "no range" in coded.kept_float["kernel"] and "in mode float" in coded.kept_float["head.bias"]


def test_a_grid_that_was_not_kept_is_found_again_or_named(net):
    specs = {"conv.weight": EIGHT}
    coded = code_network(rounded(net, specs), EXAMPLE, {"conv.weight": (EIGHT, None)})
    assert list(coded.weights) == ["conv.weight"], "its largest value has the last code"
    with torch.no_grad():
        twin = rounded(net, specs)
        twin.conv.weight[0].clamp_(-0.05, 0.05)
    coded = code_network(twin, EXAMPLE, {"conv.weight": (EIGHT, None)})
    assert not coded.weights and "was not kept" in coded.kept_float["conv.weight"]


def test_groups_whose_grids_were_not_kept_stay_float(net):
    """Without the float weight, as after `qat=every_step`: no mistake of whoever exports the file."""
    groups = QuantSpec(scheme="symmetric", bits=4, granularity="per_group", group_size=8)
    twin = rounded(net, {"conv.weight": groups})
    coded = code_network(twin, EXAMPLE, {"conv.weight": (groups, None)})
    assert not coded.in_float and coded.kept_float == {"conv.weight": "its symmetric grid was not kept"}
    assert list(code_network(twin, EXAMPLE, {"conv.weight": (groups, None)}, reference=net).in_float) == ["conv.weight"]
    with torch.no_grad():
        twin.conv.weight += 1e-4
    with pytest.raises(UserError, match=r"conv\.weight=.*off their grid"):
        code_network(twin, EXAMPLE, {"conv.weight": (groups, None)}, reference=net)


def test_tied_weights_are_coded_under_the_name_that_the_graph_reads(net):
    net.other = nn.Linear(4, 5)
    net.other.weight = net.head.weight
    net._modules = {"other": net._modules.pop("other"), **net._modules}
    twin = rounded(net, {"other.weight": EIGHT})
    coded = code_network(twin, EXAMPLE, {"other.weight": (EIGHT, None)}, reference=net)
    assert list(coded.weights) == ["head.weight"]
    twin.other.weight.data.clamp_(-0.05, 0.05)  # no longer on the grid of the float weight, which either name finds
    for name in ("other.weight", "head.weight"):
        with pytest.raises(UserError, match=name):
            code_network(twin, EXAMPLE, {name: (EIGHT, None)}, reference=net)


def test_a_float_network_has_a_graph_and_no_codes(net):
    coded = code_network(net, EXAMPLE, {})
    assert isinstance(coded.network, GraphNetwork) and not coded.weights and not coded.kept_float
    assert torch.equal(coded.network(EXAMPLE), trace(net, EXAMPLE).build()(EXAMPLE))
    assert code_network(coded.network, EXAMPLE, {}).network is coded.network, "a graph whose layers are modules stays"
