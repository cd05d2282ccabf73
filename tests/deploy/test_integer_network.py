"""Whole networks in integers against ONNX Runtime's kernels, and against the simulation."""

import pytest
import torch
from torch import nn

from qexp.deploy.integer_network import integer_codes
from qexp.models.cifar_resnet import CifarResNet


def images(n=8, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_onnx_runtimes_codes(quantized, run_file, graphs, scheme, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), scheme=scheme)
    ran = run_file(case.export(tmp_path / "net.onnx"), case.images)
    assert ran.operators["QLinearConv"] == 2
    for requantization in ("float32", "fixed_point"):
        codes, logits = integer_codes(case.network, case.weights, case.images, requantization=requantization)
        assert list(codes) == list(ran.codes)
        differences = {point: (codes[point] - ran.codes[point]).abs() for point in codes}
        assert not differences["relu"].any() or requantization == "fixed_point"
        assert all(difference.max() <= 1 and difference.float().mean() < 1e-3 for difference in differences.values())
        assert torch.allclose(logits, ran.logits, atol=0.01)


def test_resnet20_is_predicted_as_simulated(quantized, run_file, tmp_path):
    torch.manual_seed(0)
    case = quantized(CifarResNet(20), images(16, 32))
    ran = run_file(case.export(tmp_path / "net.onnx"), case.images)
    codes, logits = integer_codes(case.network, case.weights, case.images)
    simulated = case.simulate()[1]
    assert all(torch.equal(outcome.argmax(1), simulated.argmax(1)) for outcome in (logits, ran.logits))
    first = next(iter(point for point in codes if point != "input"))
    assert torch.equal(codes[first], ran.codes[first]), "the first layer has no earlier difference to carry on"


def test_the_integers_are_what_is_computed(quantized, graphs):
    """Weights of the float network play no part where there are codes."""
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images())
    expected = integer_codes(case.network, case.weights, case.images)[1]
    with torch.no_grad():
        for name in case.weights:
            dict(case.network.named_parameters())[name].fill_(torch.nan)
    assert torch.equal(integer_codes(case.network, case.weights, case.images)[1], expected)


def test_a_bias_beyond_32_bits_and_layers_without_codes_stay_float(quantized, graphs):
    torch.manual_seed(0)
    net = graphs.Residual()
    with torch.no_grad():
        net.conv1.weight[0] *= 1e-9
        net.bn1.bias[0] = 3.0
    case = quantized(net, images())
    weights = {name: weight for name, weight in case.weights.items() if name != "conv2.weight"}
    logits, simulated = integer_codes(case.network, weights, case.images)[1], case.simulate()[1]
    assert isinstance(case.network.conv1, nn.Conv2d) and torch.allclose(logits, simulated, atol=0.05)
