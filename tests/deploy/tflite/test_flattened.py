"""What lies between a flattening and a linear layer keeps the order of the pixels, which is the file's and not torch's."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qexp.deploy.activation_codes import simulated_codes
from qexp.deploy.coded_network import code_network
from qexp.deploy.tflite.export import export_tflite
from qexp.deploy.tflite.run import TfliteSession

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'qexp[deploy]'")
spec = importlib.util.spec_from_file_location("tflite_networks", Path(__file__).with_name("networks.py"))
networks = importlib.util.module_from_spec(spec)
sys.modules["tflite_networks"] = networks
spec.loader.exec_module(networks)

LAYERS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "hardtanh": lambda: nn.Hardtanh(-0.3, 0.4), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "silu": nn.SiLU, "gelu": nn.GELU, "elu": nn.ELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1), "prelu": nn.PReLU, "slopes": lambda: nn.PReLU(60),
    "batch_norm": networks.scaled_norm, "layer_norm": lambda: nn.LayerNorm(60), "softmax": lambda: nn.Softmax(1),
    "dropout": nn.Dropout, "again": nn.Flatten, "arithmetic": networks.Twice,
}  # fmt: skip


def images():
    """Of 4 x 5 pixels behind the stem."""
    return torch.randn(6, 3, 9, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.alone
@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_pixels_stay_in_order_in_float(tmp_path, name):
    torch.manual_seed(0)
    network = networks.Flattened(LAYERS[name]()).eval()
    traced = code_network(network, images()[:1], {}).network
    exported = export_tflite(traced, images()[:1], {}, tmp_path / "net.tflite")
    torch.testing.assert_close(TfliteSession(exported.path).run(images())[0], network(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.alone
@pytest.mark.parametrize("name", LAYERS)
def test_pixels_stay_in_order_in_codes(quantized, tmp_path, name):
    torch.manual_seed(0)
    case = quantized(networks.Flattened(LAYERS[name]()), images(), fold=name != "batch_norm")
    codes, logits = simulated_codes(case.network, case.images)
    largest = float(logits.abs().max())
    exported = export_tflite(case.network, case.images[:1], case.weights, tmp_path / "net.tflite", largest_logit=largest)
    session = TfliteSession(exported.path, points=tuple(codes))
    mine, *shown = session.run(case.images)
    for place, values, expected in zip(session.places, shown, codes.values(), strict=True):
        assert (values - place[1] - expected).abs().max() <= 1
    assert (mine - logits).abs().max() < 0.05 * largest
