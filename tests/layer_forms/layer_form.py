"""The ways in which people write a layer, each in a small network, with what it should come to, told by hand.

A network is `stem -> relu -> middle -> mean over pixels -> head`, where `middle` is the form: a module of four channels of 8 x 8
pixels. A new form is one function in a file beside this that builds its middle, decorated with `form(...)`: which of its weights
are planned, how many of its batch norms fold, its MACs, what ONNX Runtime computes in float, and `simulate`, which computes the
quantized middle in plain torch. `simulate(m, x, q)` gets the float middle, what the stem's ReLU gave, and `q`: `q(x)` quantizes
an activation, wherever a point should be and nowhere else (`q(x, NAME)` where several values share a scale); `q.w(weight)` a
weight; `q.fold(weight, bias, norm)` folds by the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, SIZE, WIDTH = 10, 8, 4
STEM_MACS = WIDTH * 9 * SIZE**2


@dataclass(frozen=True)
class Form:
    """What a form comes to.

    Args:
        build: makes the middle.
        simulate: computes it quantized.
        weights: names of its planned weights within `middle`.
        macs: its multiply-accumulates.
        outputs: channels that it gives.
        norms: how many batch norms it has.
        folded: how many of these fold.
        floats: its layers that ONNX Runtime computes in float.
        refused: what the message of `qexp.export` says where it has no file; empty where it has one.
        rare: takes the same way as another form, so that only the slow tests try it.
    """

    build: Callable[[], nn.Module]
    simulate: Callable
    weights: tuple[str, ...]
    macs: int
    outputs: int = WIDTH
    norms: int = 0
    folded: int = 0
    floats: tuple[str, ...] = ()
    refused: str = ""
    rare: bool = False


FORMS: dict[str, Form] = {}


def form(simulate, *weights, macs, **expected):
    """Enter the function below as a form under its name."""

    def enter(build):
        FORMS[build.__name__] = Form(build, simulate, weights, macs, **expected)
        return build

    return enter


class Network(nn.Module):
    """A form between a first and a last layer."""

    def __init__(self, middle: nn.Module, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.middle, self.head = middle, nn.Linear(outputs, CLASSES)

    def forward(self, x):
        return self.head(self.middle(F.relu(self.stem(x))).mean((2, 3)))


def network(name: str) -> nn.Module:
    """The network of a form, with weights and statistics that a seed decides."""
    torch.manual_seed(len(name))
    net = Network(FORMS[name].build(), FORMS[name].outputs)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


def simulate(name: str, net: Network, x, q):
    """The logits of the quantized network."""
    stem = F.relu(F.conv2d(q(x), q.w(net.stem.weight), net.stem.bias, padding=1))
    return F.linear(q(FORMS[name].simulate(net.middle, stem, q).mean((2, 3))), q.w(net.head.weight), net.head.bias)


class Apply(nn.Module):
    """A function of modules and tensors that it holds, as a forward."""

    def __init__(self, function, **held) -> None:
        super().__init__()
        self.function = function
        for name, value in held.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)

    def forward(self, x):
        return self.function(self, x)


def conv_norm_relu(m, x, q, **sizes):
    """Quantized convolution with a folded batch norm and a ReLU, of `nn.Sequential(conv, norm, relu)`."""
    weight, bias = q.fold(m[0].weight, m[0].bias, m[1])
    return q(F.relu(F.conv2d(q(x), q.w(weight), bias, **sizes)))
