"""Small networks whose activation points are known by hand, and the check that layers read codes."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qexp.base.types import Plan, QuantSpec
from qexp.config.policy import PolicySettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import fake_quants, insert, observed, observing
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan


class Residual(nn.Module):
    """Two convolutions and a shortcut, max pooling, an average and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.unused = nn.Linear(8, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


class Inception(nn.Module):
    """Three branches joined, one of them pooled and one shuffled, with a squeeze-excite behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(6, 4, 1), nn.Hardswish(), nn.Conv2d(4, 4, 3, padding=1))
        self.squeeze, self.excite = nn.Conv2d(14, 4, 1), nn.Conv2d(4, 14, 1)
        self.head = nn.Linear(14, 5)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        x = torch.cat([self.one(x), self.two(x), F.max_pool2d(x, 3, 1, 1)], 1)
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.adaptive_avg_pool2d(x * scale, 1).flatten(1))


class Functional(nn.Module):
    """Weights used by functions, a product of two activations, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 4, 4) / 8)
        self.position = nn.Parameter(torch.randn(16, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = F.conv2d(x, self.kernel, stride=4).flatten(2).transpose(1, 2) + self.position
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return F.linear(x.mean(1), self.weight)


def images(n=4, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def plan_for(model, traced, *, bits=8, example=None, **settings) -> Plan:
    """A plan of 8-bit weights and the activations of a traced network."""
    quant = QuantSettings(name="affine", activation=ActivationQuantSettings(bits=bits, **settings))
    return make_plan(
        inventory(model, images(1) if example is None else example),
        policy=PolicySettings(),
        quant=quant,
        bits=8,
        mode="int",
        activations=activations(traced, layers_only=quant.activation.layers_only),
    )


@torch.no_grad()
def values_at(traced, x, layers_only=False):
    """Name of an activation point -> what passes there."""
    values: dict[str, list[torch.Tensor]] = {}
    network = observed(traced, layers_only=layers_only)
    with observing(network, lambda name, value: values.setdefault(name, []).append(value.clone())):
        network(x)
    return values


def calibrated(traced, plan, x, network=None):
    """The network with fake quantization, each activation point at its range on x."""
    result = insert(traced, plan, network)
    observed_values = values_at(traced, x, layers_only=any(spec.layers_only for spec in plan.quantized_activations.values()))
    for name, module in fake_quants(result).items():
        if not module.spec.dynamic:
            values = torch.cat([value.flatten() for value in observed_values[name]])
            module.set_range(values.min(), values.max())
    return result


def sqnr_db(reference, copy):
    return float(10 * torch.log10(reference.double().square().sum() / (reference - copy).double().square().sum()))


AFFINE8 = QuantSpec(scheme="affine", bits=8)


class GridCheck(TorchDispatchMode):
    """Counts the distinct values of what each convolution, matrix product and add of two activations reads.

    It sees operators as torch runs them, so that it needs nothing of what it checks.
    """

    def __init__(self, weights) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self.counts: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("convolution", "addmm", "mm", "bmm"):
            for tensor in args[:3]:
                read = isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.weights
                if read and tensor.numel() > 1:
                    self.counts.setdefault(name, []).append(tensor.unique().numel())
        return func(*args, **(kwargs or {}))
