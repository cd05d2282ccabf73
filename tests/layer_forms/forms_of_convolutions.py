"""Forms: convolutions of all kinds, and how they pad."""

import torch.nn.functional as F
from layer_form import Apply, conv_norm_relu, form
from torch import nn

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


@form(simulate_conv3d, "conv.weight", macs=4 * 4 * 9 * 64, norms=1, folded=1, rare=True)
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


@form(simulate_transposed1d, "conv.weight", macs=4 * 4 * 2 * 64, floats=("conv",), rare=True)
def conv_transpose1d():
    return Apply(lambda m, x: F.relu(m.conv(x.flatten(2))).unsqueeze(3), conv=nn.ConvTranspose1d(4, 4, 2, stride=2))


# Padding


@form(
    lambda m, x, q: q(F.relu(F.conv2d(F.pad(q(x), (0, 1, 2, 0)), q.w(m[1].weight), m[1].bias, 2))),
    "1.weight",
    macs=4 * 4 * 9 * 16,
    rare=True,
)
def asymmetric_zeros():
    return nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU())


@form(
    lambda m, x, q: q(F.relu(F.conv2d(F.pad(q(x), (1, 1, 1, 1), "reflect"), q.w(m[1].weight), m[1].bias))),
    "1.weight",
    macs=144 * 64,
    rare=True,
)
def reflection():
    return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3), nn.ReLU())


@form(
    lambda m, x, q: q(F.relu(F.conv2d(F.pad(q(x), (1, 0, 1, 0), "replicate"), q.w(m.conv.weight), m.conv.bias))),
    "conv.weight",
    macs=64 * 64,
    rare=True,
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
    rare=True,
)
def same_word():
    return nn.Sequential(nn.Conv2d(4, 4, 4, padding="same"), nn.ReLU())
