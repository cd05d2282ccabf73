"""Small networks that between them hold what a TFLite file has a way of writing."""

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """Paddings that are SAME, VALID and neither; grouped and depthwise; a maximum beyond the image; flattened pixels."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 24, (3, 5), padding=(2, 1), dilation=(2, 1), groups=12)
        self.odd = nn.Conv2d(24, 8, (3, 2))
        self.pool, self.head = nn.MaxPool2d(3, 2, 1), nn.Linear(8 * 2 * 2, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu6(self.grouped(x))
        x = self.pool(self.odd(self.depthwise(x)))
        return self.head(torch.flatten(x, 1))


class Pools(nn.Module):
    """Averages of windows, a mean of pixels, a gate, joined and cut values, shuffled channels, upsampling, padded channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.gate, self.shuffle = nn.Conv2d(8, 8, 1), nn.ChannelShuffle(2)
        self.pool, self.mixed, self.head = nn.AvgPool2d(3, 2, 1), nn.Conv2d(10, 8, 1), nn.Linear(10, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = self.pool(torch.cat([self.left(x), self.right(x)], 1))
        x = self.shuffle(x)[:, 1:11]
        x = F.interpolate(F.relu(self.mixed(x)) + x[:, 2:], scale_factor=2.0)
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Functions(nn.Module):
    """What is computed in float between codes."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.mixed = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 8)
        functions = [nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.Hardsigmoid(), nn.LeakyReLU(0.1), nn.ELU(), nn.Tanh()]
        self.functions = nn.ModuleList(functions)
        self.slopes, self.conv, self.head = nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for function in self.functions:
            x = function(x) * 1.5 + 0.25
        x = self.slopes(self.conv(x)).permute(0, 2, 3, 1)
        x = F.hardtanh(self.mixed(self.norm(x)), -0.5, 0.75).permute(0, 3, 1, 2)
        return F.softmax(self.head(x.mean((2, 3)) / 2), -1)


class Flattened(nn.Module):
    """Something between a flattening of pixels and the linear layer that reads it.

    Args:
        layer: that something, [N, 60] -> [N, 60].
    """

    def __init__(self, layer):
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 3, 3, stride=2), layer, nn.Linear(60, 5)

    def forward(self, x):
        return self.head(self.layer(torch.flatten(self.stem(x), 1)))


def scaled_norm():
    """A batch norm of flattened pixels whose channels differ."""
    norm = nn.BatchNorm1d(60)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


class Twice(nn.Module):
    """A flattened value added to itself and moved by a number."""

    def forward(self, x):
        return (x + x) * 0.5 + 0.25


class Versions(nn.Module):
    """Operators that only later versions of TFLite read: grouped, dilated, and of three and five dimensions."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.dilated, self.shuffle = nn.Conv2d(8, 8, 3, groups=8, dilation=2), nn.ChannelShuffle(2)
        self.rows, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.shuffle(self.grouped(F.relu(self.stem(x))))
        x = self.dilated(x)
        x = self.rows(x.flatten(2).transpose(1, 2)).mean(1)
        return self.head(x)


class Joined(nn.Module):
    """Joined channels of two grids, one of them with a ReLU of its own, and a ReLU behind."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(torch.cat([self.left(x), F.relu(self.right(x))], 1))
        return self.head(x.mean((2, 3)))
