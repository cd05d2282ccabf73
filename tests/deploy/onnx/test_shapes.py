"""What moves values, in the runtimes that are installed: windows and paddings are torch's."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.config.export import RUNTIMES
from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.runtimes import open_runtime
from qexp.nn.graph import trace

ONNX_RUNTIMES = [name for name, row in RUNTIMES.items() if row.reads == "onnx" and importlib.util.find_spec(row.module)]


class Windows(nn.Module):
    """Pools by each of several rules; what they give, joined."""

    def __init__(self, *rules):
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(*rule, ceil_mode=True) for rule in rules)

    def forward(self, x):
        return torch.cat([pool(x).flatten(1) for pool in self.pools], 1)


@pytest.mark.parametrize("name", ONNX_RUNTIMES)
def test_max_pooling_has_the_windows_that_torch_has(name, tmp_path):
    """Of kernel, stride, padding, dilation: windows that end beyond the image, and one that would begin there and is left out."""
    pytest.importorskip("onnx", reason="needs onnx: pip install 'qexp[deploy]'")
    network = Windows((1, 2, 0), (3, 3, 1), (2, 3, 1), (3, 2, 0), (3, 2, 1, 2), ((2, 3), (3, 2), (1, 0)))
    images = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) - 5  # a padding of zeros would win
    exported = export_qdq(trace(network, images).build(), images, {}, tmp_path / "net.onnx")
    assert torch.equal(open_runtime(name, exported.path).run(images), network(images))


class Padded(nn.Module):
    """Convolutions behind paddings, as ports from TensorFlow have them; one padding that an addition reads too."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 2)
        self.zeros = nn.ZeroPad2d((0, 1, 2, 0))

    def forward(self, x):
        x = F.relu(self.first(self.zeros(F.pad(x, (1, 0)))))
        x = F.relu(self.second(self.zeros(x)))
        x = F.pad(x, (1, 1, 1, 1))
        return (F.relu(self.third(x)) + x[:, :, 1:, 1:]).mean((2, 3))


def test_a_padding_before_convolutions_is_theirs(quantized, run_file, tmp_path):
    """A Pad between DequantizeLinear and a convolution would keep it from an integer kernel."""
    import onnx

    torch.manual_seed(0)
    case = quantized(Padded(), torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1)))
    exported = case.export(tmp_path / "net.onnx")
    nodes = onnx.load(exported.path).graph.node
    pads = {node.name: list(next(a.ints for a in node.attribute if a.name == "pads")) for node in nodes if node.op_type == "Conv"}
    assert pads == {"first": [2, 1, 0, 1], "second": [3, 1, 1, 2], "third": [0, 0, 0, 0]}
    assert [node.op_type for node in nodes].count("Pad") == 1
    codes, logits = case.simulate(exported)
    ran = run_file(exported, case.images)
    assert ran.operators["QLinearConv"] == 3 and torch.allclose(ran.logits, logits, atol=1e-5)
    assert all(torch.equal(ran.codes[point], values) for point, values in codes.items())


class Halves(nn.Module):
    """Scales by one half of a parameter and shifts by the other; sizes of the batch are named in reshapes alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.both = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(8))

    def forward(self, x):
        scale, shift = self.both.chunk(2)
        x = self.conv(x)
        x = x.view(x.shape[0] * 2, 2, 9).sigmoid().view(x.shape[0], 4, 3, 3)
        return x.mean((2, 3)) * scale + shift


@pytest.mark.parametrize("name", ONNX_RUNTIMES)
def test_parts_of_a_parameter_and_any_number_of_images(name, tmp_path):
    pytest.importorskip("onnx", reason="needs onnx: pip install 'qexp[deploy]'")
    torch.manual_seed(0)
    network = Halves().eval()
    exported = export_qdq(trace(network, torch.zeros(1, 3, 5, 5)).build(), torch.zeros(1, 3, 5, 5), {}, tmp_path / "net.onnx")
    for number in (1, 4):
        images = torch.randn(number, 3, 5, 5)
        with torch.no_grad():
            assert torch.allclose(open_runtime(name, exported.path).run(images), network(images), atol=1e-5)
