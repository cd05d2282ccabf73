"""Forms: layers that are not called as modules of torch's, and weights that are made of others."""

import math

import torch
import torch.nn.functional as F
from layer_form import Apply, form
from torch import nn
from torch.nn.utils import parametrizations


class SameConv(nn.Conv2d):
    """Pads by itself, more behind than before, as networks ported from TensorFlow do."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def simulate_same(m, x, q):
    weight, bias = q.fold(m[0].weight, m[0].bias, m[1])
    return q(F.relu6(F.conv2d(F.pad(q(x), (0, 1, 0, 1)), q.w(weight), bias, stride=2)))


@form(simulate_same, "0.weight", macs=144 * 16, norms=1, folded=1)
def padding_subclass():
    return nn.Sequential(SameConv(4, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU6())


class SizedConv(nn.Conv2d):
    """Pads by as much as the image's size asks for, which no trace of any size follows."""

    def forward(self, x):
        rows, columns = (max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, 2)


@form(simulate_same, "0.weight", macs=144 * 16, norms=1, folded=1)
def padding_by_size():
    return nn.Sequential(SizedConv(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU6())


class StandardizedConv(nn.Conv2d):
    """Standardizes its weight before each use, as ScaledStdConv2d of normalizer-free networks does."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, self.out_channels).reshape(-1, 1, 1, 1))

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-6)
        weight = self.gain * weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def simulate_standardized(m, x, q):
    flat = m[0].weight.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    weight, bias = q.fold(flat.reshape_as(m[0].weight) * m[0].gain, m[0].bias, m[1])
    return q(F.relu(F.conv2d(q(x), q.w(weight), bias, padding=1)))


@form(simulate_standardized, "0.weight", macs=144 * 64, norms=1, folded=1)
def standardizing_subclass():
    return nn.Sequential(StandardizedConv(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


def simulate_scaled_linear(m, x, q):
    x = F.linear(q(x).permute(0, 2, 3, 1), q.w(m.linear.weight * m.linear.scale), m.linear.bias)
    return q(F.relu(x).permute(0, 3, 1, 2))


class ScaledLinear(nn.Linear):
    """Multiplies its weight by a number that it holds, as networks with equalized learning rates do."""

    scale = 1.7

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias)


@form(simulate_scaled_linear, "linear.weight", macs=16 * 64, rare=True)
def scaling_linear():
    def forward(m, x):
        return F.relu(m.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    return Apply(forward, linear=ScaledLinear(4, 4))


def simulate_parameter(m, x, q):
    weight, bias = q.fold(m.kernel, None, m.norm)
    return q(F.relu(F.conv2d(q(x), q.w(weight), bias, 2, 1)))


@form(simulate_parameter, "kernel", macs=144 * 16, norms=1, folded=1)
def function_on_a_parameter():
    forward = lambda m, x: F.relu(m.norm(F.conv2d(x, m.kernel, stride=2, padding=1)))  # noqa: E731
    return Apply(forward, kernel=torch.randn(4, 4, 3, 3) / 6, norm=nn.BatchNorm2d(4))


@form(
    lambda m, x, q: q(F.relu(F.linear(q(x).flatten(1), q.w(m.matrix), m.shift)).reshape(-1, 4, 1, 1)),
    "matrix",
    macs=4 * 256,
    rare=True,
)
def linear_function_on_parameters():
    forward = lambda m, x: F.relu(F.linear(x.flatten(1), m.matrix, m.shift)).reshape(x.shape[0], 4, 1, 1)  # noqa: E731
    return Apply(forward, matrix=torch.randn(4, 256) / 16, shift=torch.randn(4))


class Blur(nn.Module):
    """A fixed low pass, its kernel a buffer that is in no state dict, as anti-aliased networks have it."""

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (row * row[:, None] / 16).repeat(4, 1, 1, 1), persistent=False)

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel, stride=2, groups=x.shape[1])


def simulate_blur(m, x, q):
    return q(F.conv2d(F.pad(q(x), (1, 1, 1, 1), "reflect"), q.w(m.kernel), stride=2, groups=4))


@form(simulate_blur, "kernel_conv2d.weight", macs=4 * 9 * 16)
def function_on_a_buffer():
    return Blur()


@form(lambda m, x, q: q(F.relu(F.conv2d(q(x), q.w(m.conv.weight), m.conv.bias))), "conv.weight", macs=16 * 64, rare=True)
def function_on_a_modules_weight():
    return Apply(lambda m, x: F.relu(torch.conv2d(x, m.conv.weight, m.conv.bias)), conv=nn.Conv2d(4, 4, 1))


def simulate_made(m, x, q):
    return q(F.relu(F.conv2d(q(x), q.w(m[0].weight), m[0].bias, padding=1)))


@form(simulate_made, "0.weight", macs=144 * 64)
def weight_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)), nn.ReLU())


@form(simulate_made, "0.weight", macs=144 * 64, rare=True)
def spectral_norm():
    return nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)), nn.ReLU())
