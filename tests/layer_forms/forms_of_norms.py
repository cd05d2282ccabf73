"""Forms: shared modules, batch norms that are special, and what is refused."""

import torch.nn.functional as F
from layer_form import Apply, conv_norm_relu, form
from torch import nn


def simulate_shared(m, x, q):
    x = q(F.relu(F.conv2d(q(x), q.w(m.conv.weight), m.conv.bias, padding=1)))
    return q(F.relu(F.conv2d(x, q.w(m.conv.weight), m.conv.bias, padding=1)))


@form(simulate_shared, "conv.weight", macs=2 * 144 * 64)
def shared_module():
    return Apply(lambda m, x: F.relu(m.conv(F.relu(m.conv(x)))), conv=nn.Conv2d(4, 4, 3, padding=1))


@form(lambda m, x, q: conv_norm_relu(m, x, q), "0.weight", macs=16 * 64, norms=1, folded=1, rare=True)
def norm_without_affine():
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU())


class ActivatingNorm(nn.BatchNorm2d):
    """A batch norm with an activation within, as timm's networks have it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        kept = (self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(F.batch_norm(x, *kept, self.training, self.momentum, self.eps))


@form(conv_norm_relu, "0.weight", macs=16 * 64, norms=1, folded=1)
def norm_that_activates():
    return nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), ActivatingNorm(4))


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


@form(None, macs=0, refused=r"export=middle.mean \(mean\).* no single dimension of its result is that of the images")
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
