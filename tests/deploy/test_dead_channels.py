"""A channel of almost no weights keeps neither its layer's bias nor its layer in float; the simulation has what the file has."""

from types import SimpleNamespace

import pytest
import torch

from qexp.base.types import QParams
from qexp.deploy.activation_codes import simulated_codes
from qexp.deploy.coded_network import CodedNetwork
from qexp.deploy.dead_channels import _coarser, floor_dead_channels
from qexp.deploy.fidelity import simulation_of
from qexp.deploy.lower import _lowered
from qexp.deploy.weight_codes import MAX_BIAS, WeightCodes, accumulator_scale, bias_codes


@pytest.fixture
def case(quantized, graphs):
    """Of `conv1` the first channel has weights of 1e-9 beside a bias of 3, the second of 1e-30 beside none."""
    torch.manual_seed(0)
    net = graphs.Residual()
    with torch.no_grad():
        net.conv1.weight[0] *= 1e-9
        net.conv1.weight[1] *= 1e-30
        net.bn1.weight[1], net.bn1.bias[0] = 1e-9, 3.0
    return quantized(net, torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def test_its_bias_fits_and_nothing_else_changes(case):
    before, bias = case.weights["conv1.weight"], case.network.get_submodule("conv1").bias
    after = floor_dead_channels(case.network, case.weights)["conv1.weight"]
    ratio = after.qparams.scale / before.qparams.scale
    assert bool((ratio[:2] > 1).all()) and torch.equal(ratio[2:], torch.ones_like(ratio[2:]))
    assert torch.equal(torch.log2(ratio).round(), torch.log2(ratio)), "a power of two, which every grid stays one with"
    assert torch.equal(after.codes[2:], before.codes[2:])
    quantizer = next(module for module in case.network.modules() if getattr(module, "name", "") == "input")
    codes = bias_codes(bias, accumulator_scale(quantizer.qparams, after.qparams))
    assert bias_codes(bias, accumulator_scale(quantizer.qparams, before.qparams)) is None
    assert codes is not None and int(codes[0].abs()) > MAX_BIAS // 4, "no coarser than it must be"
    lost = (after.values - before.values).abs().flatten(1).sum(1) * 255 * float(quantizer.scale)
    assert float(lost[0]) < 2**-22 * float(bias[0].detach().abs()) * before.codes[0].numel()
    others = floor_dead_channels(case.network, case.weights)
    assert all(others[name] is case.weights[name] for name in case.weights if name != "conv1.weight")


def test_the_whole_network_runs_in_integers_as_it_is_simulated(case, run_file, tmp_path):
    lowered = _lowered(CodedNetwork(case.network, case.weights, {}))
    assert lowered.floored == ("conv1.weight",) and any("nearly dead" in note for note in lowered.notes)
    case.weights.clear()
    case.weights.update(lowered.weights)
    exported = case.export(tmp_path / "net.onnx")
    assert not any("added in float" in note for note in exported.notes) and "conv1.bias" in exported.biases
    exact = SimpleNamespace(export=SimpleNamespace(simulate="exact"))
    simulation = simulation_of(exact, lowered, exported)
    assert torch.equal(simulation.get_submodule("conv1").weight, lowered.weights["conv1.weight"].values)
    codes, logits = simulated_codes(simulation, case.images)
    ran = run_file(exported, case.images)
    assert ran.operators["QLinearConv"] == 2 and not ran.operators["Conv"] + ran.operators["FusedConv"]
    assert all(torch.equal(ran.codes[point], values) for point, values in codes.items())


def test_codes_turn_about_their_zero_point():
    weight = WeightCodes(
        torch.tensor([[10, 4, 8], [3, 0, 1]]), QParams(torch.tensor([0.5, 1.0]), torch.tensor([4.0, 4.0]), 0, 15, 0)
    )
    coarser = _coarser(weight, torch.tensor([1.0, 0.0]).double())
    assert coarser.codes.tolist() == [[7, 4, 6], [3, 0, 1]] and coarser.qparams.scale.tolist() == [1.0, 1.0]
