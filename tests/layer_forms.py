"""The ways in which people write a layer, each in a small network, with what it should come to, told by hand.

A network is `stem -> relu -> middle -> mean over pixels -> head`, where `middle` is the form: a module of four channels of 8 x 8
pixels. A new form is one function here that builds its middle, decorated with `form(...)`: which of its weights are planned, how
many of its batch norms fold, its MACs, what ONNX Runtime computes in float, and `simulate`, which computes the quantized middle in
plain torch. `simulate(m, x, q)` gets the float middle, what the stem's ReLU gave, and `q`: `q(x)` quantizes an activation, wherever a
point should be and nowhere else (`q(x, NAME)` where several values share a scale); `q.w(weight)` a weight; `q.fold(weight, bias, norm)` folds by the formula.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

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


# Convolutions


@form(lambda m, x, q: conv_norm_relu(m, x, q, padding=1), "0.weight", macs=6 * 4 * 9 * 64, outputs=6, norms=1, folded=1)
def plain():
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())


@form(
    lambda m, x, q: conv_norm_relu(m, x, q, padding=2, dilation=2, groups=2),
    "0.weight", macs=6 * 2 * 9 * 64, outputs=6, norms=1, folded=1,
)  # fmt: skip
def grouped_dilated():
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), nn.BatchNorm2d(6), nn.ReLU())


def simulate_depthwise(m, x, q):
    weight, bias = q.fold(m[0].weight, None, m[1])
    x = q(F.relu6(F.conv2d(q(x), q.w(weight), bias, padding=1, groups=4)))
    weight, bias = q.fold(m[3].weight, None, m[4])
    return q(F.conv2d(x, q.w(weight), bias))


@form(simulate_depthwise, "0.weight", "3.weight", macs=(4 * 9 + 6 * 4) * 64, outputs=6, norms=2, folded=2)
def depthwise_separable():
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU6())
    return depthwise.extend([nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)])


def simulate_conv1d(m, x, q):
    weight, bias = q.fold(m.conv.weight, None, m.norm)
    return q(F.relu(F.conv1d(q(x).flatten(2), q.w(weight), bias, padding=1)).reshape(-1, 4, 8, 8))


@form(simulate_conv1d, "conv.weight", macs=4 * 4 * 3 * 64, norms=1, folded=1)
def conv1d():
    def forward(m, x):
        return F.relu(m.norm(m.conv(x.flatten(2)))).reshape(x.shape[0], 4, 8, 8)

    return Apply(forward, conv=nn.Conv1d(4, 4, 3, padding=1, bias=False), norm=nn.BatchNorm1d(4))


def simulate_conv3d(m, x, q):
    weight, bias = q.fold(m.conv.weight, m.conv.bias, m.norm)
    return q(F.relu(F.conv3d(q(x).unsqueeze(2), q.w(weight), bias, padding=(0, 1, 1))).squeeze(2))


@form(simulate_conv3d, "conv.weight", macs=4 * 4 * 9 * 64, norms=1, folded=1)
def conv3d():
    def forward(m, x):
        return F.relu(m.norm(m.conv(x.unsqueeze(2)))).squeeze(2)

    return Apply(forward, conv=nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)), norm=nn.BatchNorm3d(4))


def simulate_transposed(m, x, q):
    weight, bias = q.fold(m[0].weight, None, m[1], groups=2)
    sizes = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
    return q(F.relu(F.conv_transpose2d(q(x), q.w(weight, axis=1), bias, **sizes)))


@form(simulate_transposed, "0.weight", macs=4 * 3 * 9 * 64, outputs=6, norms=1, folded=1, floats=("0",))
def conv_transpose2d():
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU())


def simulate_transposed1d(m, x, q):
    x = F.conv_transpose1d(q(x).flatten(2), q.w(m.conv.weight, axis=1), m.conv.bias, stride=2)
    return q(F.relu(x).unsqueeze(3))


@form(simulate_transposed1d, "conv.weight", macs=4 * 4 * 2 * 64, floats=("conv",))
def conv_transpose1d():
    return Apply(lambda m, x: F.relu(m.conv(x.flatten(2))).unsqueeze(3), conv=nn.ConvTranspose1d(4, 4, 2, stride=2))


# Padding


@form(
    lambda m, x, q: q(F.relu(F.conv2d(F.pad(q(x), (0, 1, 2, 0)), q.w(m[1].weight), m[1].bias, 2))),
    "1.weight",
    macs=4 * 4 * 9 * 16,
)
def asymmetric_zeros():
    return nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU())


@form(
    lambda m, x, q: q(F.relu(F.conv2d(F.pad(q(x), (1, 1, 1, 1), "reflect"), q.w(m[1].weight), m[1].bias))),
    "1.weight",
    macs=144 * 64,
)
def reflection():
    return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3), nn.ReLU())


@form(
    lambda m, x, q: q(F.relu(F.conv2d(F.pad(q(x), (1, 0, 1, 0), "replicate"), q.w(m.conv.weight), m.conv.bias))),
    "conv.weight",
    macs=64 * 64,
)
def replicating_function():
    return Apply(lambda m, x: F.relu(m.conv(F.pad(x, (1, 0, 1, 0), mode="replicate"))), conv=nn.Conv2d(4, 4, 2))


def simulate_circular(m, x, q):
    weight, bias = q.fold(m[0].weight, None, m[1])
    return q(F.relu(F.conv2d(F.pad(q(x), (1, 1, 1, 1), "circular"), q.w(weight), bias)))


@form(simulate_circular, "0.weight", macs=144 * 64, norms=1, folded=1)
def circular_mode():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False), nn.BatchNorm2d(4), nn.ReLU())


@form(
    lambda m, x, q: q(F.relu(F.conv2d(F.pad(q(x), (1, 2, 1, 2)), q.w(m[0].weight), m[0].bias, dilation=1))),
    "0.weight",
    macs=4 * 4 * 16 * 64,
)
def same_word():
    return nn.Sequential(nn.Conv2d(4, 4, 4, padding="same"), nn.ReLU())


# Layers that are not called as modules of torch's


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


@form(simulate_scaled_linear, "linear.weight", macs=16 * 64, floats=("linear",))
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


@form(lambda m, x, q: q(F.relu(F.linear(q(x).flatten(1), q.w(m.matrix), m.shift)).reshape(-1, 4, 1, 1)), "matrix", macs=4 * 256)
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


@form(lambda m, x, q: q(F.relu(F.conv2d(q(x), q.w(m.conv.weight), m.conv.bias))), "conv.weight", macs=16 * 64)
def function_on_a_modules_weight():
    return Apply(lambda m, x: F.relu(torch.conv2d(x, m.conv.weight, m.conv.bias)), conv=nn.Conv2d(4, 4, 1))


def simulate_made(m, x, q):
    return q(F.relu(F.conv2d(q(x), q.w(m[0].weight), m[0].bias, padding=1)))


@form(simulate_made, "0.weight", macs=144 * 64)
def weight_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)), nn.ReLU())


@form(simulate_made, "0.weight", macs=144 * 64)
def spectral_norm():
    return nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)), nn.ReLU())


# Functions between layers


def simulate_activation(function):
    def simulate_it(m, x, q):
        weight, bias = q.fold(m[0].weight, None, m[1])
        return q(function(m[2], F.conv2d(q(x), q.w(weight), bias, padding=1)))

    return simulate_it


def activated(module):
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), module)


_BEHIND = {"macs": 144 * 64, "norms": 1, "folded": 1, "floats": ("0",)}


@form(simulate_activation(lambda m, y: y * F.relu6(y + 3) / 6), "0.weight", **_BEHIND)
def hardswish():
    return activated(nn.Hardswish())


@form(simulate_activation(lambda m, y: y * torch.sigmoid(y)), "0.weight", **_BEHIND)
def silu():
    return activated(nn.SiLU())


@form(simulate_activation(lambda m, y: y * (1 + torch.erf(y / math.sqrt(2))) / 2), "0.weight", **_BEHIND)
def gelu():
    return activated(nn.GELU())


@form(simulate_activation(lambda m, y: torch.where(y > 0, y, y * m.weight[:, None, None])), "0.weight", **_BEHIND)
def prelu():
    return activated(nn.PReLU(4, init=0.2))


@form(simulate_activation(lambda m, y: torch.where(y > 0, y, y.exp() - 1)), "0.weight", **_BEHIND)
def elu():
    return activated(nn.ELU())


@form(simulate_activation(lambda m, y: y * torch.tanh(torch.log1p(y.exp()))), "0.weight", **_BEHIND)
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


@form(simulate_split, "conv.weight", macs=2 * 2 * 9 * 64)
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


@form(simulate_pixels, "1.weight", macs=4 * 256)
def pixel_shuffle():
    return nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(1, 4, 1), nn.ReLU())


def simulate_scaled(m, x, q):
    x = q(x)
    return q(x + q(m.gamma * F.conv2d(x, q.w(m.conv.weight), m.conv.bias)))


@form(simulate_scaled, "conv.weight", macs=16 * 64, floats=("conv",))
def layer_scale():
    return Apply(lambda m, x: x + m.gamma * m.conv(x), conv=nn.Conv2d(4, 4, 1), gamma=torch.linspace(0.1, 1, 4)[:, None, None])


# Sharing, and batch norms


def simulate_shared(m, x, q):
    x = q(F.relu(F.conv2d(q(x), q.w(m.conv.weight), m.conv.bias, padding=1)))
    return q(F.relu(F.conv2d(x, q.w(m.conv.weight), m.conv.bias, padding=1)))


@form(simulate_shared, "conv.weight", macs=2 * 144 * 64)
def shared_module():
    return Apply(lambda m, x: F.relu(m.conv(F.relu(m.conv(x)))), conv=nn.Conv2d(4, 4, 3, padding=1))


@form(lambda m, x, q: conv_norm_relu(m, x, q), "0.weight", macs=16 * 64, norms=1, folded=1)
def norm_without_affine():
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU())


def simulate_norm_first(m, x, q):
    mean, var = m[0].running_mean[:, None, None], m[0].running_var[:, None, None]
    x = (x - mean) / (var + m[0].eps).sqrt() * m[0].weight[:, None, None] + m[0].bias[:, None, None]
    return q(F.relu(F.conv2d(q(F.relu(x)), q.w(m[2].weight), m[2].bias, padding=1)))


@form(simulate_norm_first, "2.weight", macs=144 * 64, norms=1, folded=0, floats=("stem",))
def norm_before_a_convolution():
    return nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())


# Refused


@form(None, macs=0, refused=r"middle\.1 \(GroupNorm\)")
def group_norm():
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))


@form(None, macs=0, refused=r"export=\S*conv2d \(conv2d\).* its weight depends on the images")
def weight_from_the_images():
    return Apply(lambda m, x: F.conv2d(x, m.conv(x).mean((0, 2, 3)).reshape(4, 1, 1, 1), groups=4), conv=nn.Conv2d(4, 4, 1))


@form(None, macs=0, refused="Tracing stopped in module middle")
def branching():
    return Apply(lambda m, x: m.conv(x) if x.mean() > 0 else x, conv=nn.Conv2d(4, 4, 1))


@form(None, macs=0, refused=r"middle\.0 \(ConstantPad2d\).* not zero")
def padded_with_ones():
    return nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 4, 3))


@form(None, macs=0, refused=r"middle\.0 \(Upsample\).* no whole number of pixels")
def upsampled_by_a_fraction():
    return nn.Sequential(nn.Upsample(scale_factor=1.3, mode="bilinear"), nn.Conv2d(4, 4, 1))


def __getattr__(name: str):
    """`model.factory=layer_forms.py:NAME` builds the network of a form."""
    if name.startswith("net_") and name.removeprefix("net_") in FORMS:
        return lambda num_classes, in_channels: network(name.removeprefix("net_"))
    raise AttributeError(name)
