"""Forms: what stands between layers."""

import math

import torch
import torch.nn.functional as F
from layer_form import Apply, form
from torch import nn


def simulate_activation(function):
    def simulate_it(m, x, q):
        weight, bias = q.fold(m[0].weight, None, m[1])
        return q(function(m[2], F.conv2d(q(x), q.w(weight), bias, padding=1)))

    return simulate_it


def activated(module):
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), module)


_BEHIND = {"macs": 144 * 64, "norms": 1, "folded": 1, "floats": ("0",)}


@form(simulate_activation(lambda m, y: y * F.relu6(y + 3) / 6), "0.weight", **_BEHIND, rare=True)
def hardswish():
    return activated(nn.Hardswish())


@form(simulate_activation(lambda m, y: y * torch.sigmoid(y)), "0.weight", **_BEHIND)
def silu():
    return activated(nn.SiLU())


@form(simulate_activation(lambda m, y: y * (1 + torch.erf(y / math.sqrt(2))) / 2), "0.weight", **_BEHIND, rare=True)
def gelu():
    return activated(nn.GELU())


@form(simulate_activation(lambda m, y: torch.where(y > 0, y, y * m.weight[:, None, None])), "0.weight", **_BEHIND)
def prelu():
    return activated(nn.PReLU(4, init=0.2))


@form(simulate_activation(lambda m, y: torch.where(y > 0, y, y.exp() - 1)), "0.weight", **_BEHIND, rare=True)
def elu():
    return activated(nn.ELU())


@form(simulate_activation(lambda m, y: y * torch.tanh(torch.log1p(y.exp()))), "0.weight", **_BEHIND, rare=True)
def mish():
    return activated(nn.Mish())


def simulate_excite(m, x, q):
    x = q(x)
    scale = q(F.relu(F.conv2d(q(x.mean((2, 3), keepdim=True)), q.w(m.reduce.weight), m.reduce.bias)))
    scale = F.conv2d(scale, q.w(m.expand.weight), m.expand.bias)
    return q(x * q(F.relu6(scale + 3) / 6))


@form(simulate_excite, "reduce.weight", "expand.weight", macs=2 * 4 * 2, floats=("expand",))
def squeeze_excite():
    forward = lambda m, x: x * F.hardsigmoid(m.expand(F.relu(m.reduce(F.adaptive_avg_pool2d(x, 1)))))  # noqa: E731
    return Apply(forward, reduce=nn.Conv2d(4, 2, 1), expand=nn.Conv2d(2, 4, 1))


def simulate_shuffle(m, x, q):
    x = q(F.relu(F.conv2d(q(x), q.w(m[0].weight), m[0].bias, groups=2)))
    x = x[:, [0, 2, 1, 3]]
    return q(F.relu(F.conv2d(x, q.w(m[3].weight), m[3].bias, groups=2)))


@form(simulate_shuffle, "0.weight", "3.weight", macs=2 * 8 * 64)
def channel_shuffle():
    first = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.ChannelShuffle(2))
    return first.extend([nn.Conv2d(4, 4, 1, groups=2), nn.ReLU()])


def simulate_split(m, x, q):
    kept, changed = q(x, "joined").chunk(2, 1)
    changed = q(F.relu(F.conv2d(changed, q.w(m.conv.weight), m.conv.bias, padding=1)), "joined")
    return torch.stack([kept, changed], 2).flatten(1, 2)


@form(simulate_split, "conv.weight", macs=2 * 2 * 9 * 64, rare=True)
def split_and_shuffled_by_hand():
    def forward(m, x):
        kept, changed = x.chunk(2, 1)
        x = torch.cat([kept, F.relu(m.conv(changed))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    return Apply(forward, conv=nn.Conv2d(2, 2, 3, padding=1))


@form(
    lambda m, x, q: q(F.relu(F.conv2d(q(x).repeat_interleave(2, 2).repeat_interleave(2, 3), q.w(m[1].weight), m[1].bias))),
    "1.weight",
    macs=16 * 256,
    rare=True,
)
def upsampled():
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 1), nn.ReLU())


def simulate_interpolated(m, x, q):
    x = q(F.interpolate(q(x), size=(12, 6), mode="bilinear", align_corners=False))
    return q(F.relu(F.conv2d(x, q.w(m.conv.weight), m.conv.bias)))


@form(simulate_interpolated, "conv.weight", macs=16 * 72)
def interpolated():
    forward = lambda m, x: F.relu(m.conv(F.interpolate(x, size=(12, 6), mode="bilinear", align_corners=False)))  # noqa: E731
    return Apply(forward, conv=nn.Conv2d(4, 4, 1))


def simulate_pixels(m, x, q):
    x = q(x).reshape(-1, 1, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(-1, 1, 16, 16)
    return q(F.relu(F.conv2d(x, q.w(m[1].weight), m[1].bias)))


@form(simulate_pixels, "1.weight", macs=4 * 256, rare=True)
def pixel_shuffle():
    return nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(1, 4, 1), nn.ReLU())


def simulate_scaled(m, x, q):
    x = q(x)
    return q(x + q(m.gamma * F.conv2d(x, q.w(m.conv.weight), m.conv.bias)))


@form(simulate_scaled, "conv.weight", macs=16 * 64, floats=("conv",), rare=True)
def layer_scale():
    return Apply(lambda m, x: x + m.gamma * m.conv(x), conv=nn.Conv2d(4, 4, 1), gamma=torch.linspace(0.1, 1, 4)[:, None, None])


@form(lambda m, x, q: q(F.avg_pool2d(q(x), 3, 2, ceil_mode=True, count_include_pad=False)), macs=0)
def averaged_beyond_the_edge():
    return nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)
