"""Costs: multiplications against those counted by hand, times and memory of what is known to take some."""

import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from qexp.deploy import cost
from qexp.deploy.cost import bops, latency, layer_bits, peak_memory_bytes
from qexp.models.cifar_resnet import CifarResNet
from qexp.nn.graph import trace
from qexp.nn.macs import macs_per_layer


def images(n=6, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_macs_of_known_networks():
    """ResNet-20: 40.6 million, as He et al. 2015 and everybody counts them."""
    net = CifarResNet(20)
    macs = macs_per_layer(net, torch.zeros(4, 3, 32, 32))
    assert macs["conv1"] == 3 * 9 * 16 * 32 * 32 and sum(macs.values()) == pytest.approx(40.55e6, rel=2e-3)
    weights = {f"{name}.weight" for name in macs}
    assert weights == {name for name, value in net.named_parameters() if value.dim() > 1} and net.training
    assert macs_per_layer(trace(net, torch.zeros(1, 3, 32, 32)).build(), torch.zeros(1, 3, 32, 32)) == macs


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, groups=3)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.twice = nn.Linear(6, 6)

    def forward(self, x):
        x = self.depthwise(x).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.twice(self.twice(x))
        return (x @ x.transpose(1, 2)).mean(1)


def test_macs_of_groups_attention_repeated_layers_and_products():
    macs = macs_per_layer(Mixed(), torch.zeros(2, 3, 4, 4))
    tokens = 4
    attention = 4 * tokens * 6 * 6 + 2 * tokens * tokens * 6
    assert macs == {"depthwise": 4 * 6 * 9, "attention": attention, "twice": 2 * tokens * 36, "Mixed": tokens * tokens * 6}


def test_bops_of_a_quantized_network(quantized, graphs):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), act_bits=6, bits=4)
    bits = layer_bits(case.network, case.weights)
    assert bits == {name: (4, 6) for name in ("conv1", "conv2", "head")}, "max pooling and dropout pass codes on"
    weights = {name: weight for name, weight in case.weights.items() if name != "conv2.weight"}
    assert layer_bits(case.network, weights)["conv2"] == (32, 6)
    macs = macs_per_layer(case.network, images())
    operations = bops(macs, bits)
    assert macs.keys() == bits.keys() and operations == {name: count * 24 for name, count in macs.items()}


def test_latency_is_the_median_of_the_repeats(monkeypatch):
    now, steps = [0.0], iter([9.0, 0.001, 0.003, 0.002, 0.005, 0.004])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run():
        now[0] += next(steps)

    timing = latency(run, repeats=5, warmup=1)
    assert (timing.median_ms, timing.repeats) == (pytest.approx(3.0), 5)
    assert (timing.low_ms, timing.high_ms) == (pytest.approx(1.4), pytest.approx(4.6))
    steps = iter([0.001])
    assert latency(run, repeats=1, warmup=0).low_ms == pytest.approx(1.0)


_ALLOCATES = """
import json, torch
from qexp.deploy import cost, runtimes

class Session:
    def run(self, batch):
        torch.ones(len(batch), 2**24).sum()

runtimes.open_runtime = lambda *_, **__: Session()
cost.report_peak(json.dumps({"name": "torch", "path": "x", "shape": [1, 3, 8, 8], "threads": 1}))
"""


def test_the_peak_is_what_a_run_takes():
    """64 MB that a run allocates and gives back; in a young process, of which a kernel takes no idle pages back meanwhile."""
    done = subprocess.run([sys.executable, "-c", _ALLOCATES], capture_output=True, text=True, check=True)
    assert 60e6 < int(done.stdout) < 100e6


def test_the_peak_of_a_runtime(quantized, graphs, tmp_path):
    torch.manual_seed(0)
    exported = quantized(graphs.Residual(), images()).export(tmp_path / "net.onnx")
    assert 2**18 < peak_memory_bytes("onnxruntime", exported.path, (2, 3, 16, 16)) < 2**28


def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_CHILD", "raise FileNotFoundError('absent.onnx')")
    with pytest.raises(RuntimeError, match="measuring the memory of onnxruntime failed: .*absent"):
        peak_memory_bytes("onnxruntime", tmp_path / "absent.onnx", (2, 3, 16, 16))


class Given(nn.Module):
    """A module is given a view of a parameter, as CaiT's last blocks are given the class token."""

    def __init__(self):
        super().__init__()
        self.token, self.mix, self.head = nn.Parameter(torch.ones(1, 1, 8)), Mix(), nn.Linear(8, 2)

    def forward(self, images):
        return self.head(self.mix(images.flatten(2).transpose(1, 2), self.token.expand(len(images), -1, -1))[:, 0])


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, token):
        return token + self.linear(x).mean(1, keepdim=True)


def test_a_parameter_may_be_given_to_a_module():
    net = Given()
    assert macs_per_layer(net, torch.zeros(2, 8, 3, 3)) == {"mix.linear": 9 * 64, "head": 16}
    assert all(parameter.requires_grad for parameter in net.parameters())
