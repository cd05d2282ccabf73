"""From a network to one that trains with its quantization, in one call, and networks that are hard to prepare."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from qexp.base.types import Batch
from qexp.config.calibrate import CalibrateSettings
from qexp.config.policy import PolicySettings
from qexp.config.qat import QatSettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.config.quant import QuantSettings, WeightQuantSettings
from qexp.nn.activation_points import activations
from qexp.nn.graph import evaluating, trace
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan
from qexp.qat.convert import Converted, assemble, convert
from qexp.qat.initialise import initialise
from qexp.qat.prepare import QatNetwork, prepare

# Method, granularity of the weights.
METHODS = tuple((name, granularity) for name, method in QAT_METHODS.items() for granularity in method.granularities[:2])


@dataclass
class Case:
    """A network prepared for training, the float network it came from, and the images."""

    qat: QatNetwork
    network: nn.Module
    images: torch.Tensor

    def train(self, num_steps: int = 2, lr: float = 0.01) -> "Case":
        module, trained = (
            self.qat.module.train(),
            [parameter for parameter in self.qat.module.parameters() if parameter.requires_grad],
        )
        optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9)
        for _ in range(num_steps):
            optimizer.zero_grad()
            F.cross_entropy(module(self.images), torch.arange(len(self.images)) % 3).backward()
            assert all(parameter.grad is not None for parameter in trained)
            optimizer.step()
            if self.qat.settings.method.overwrites_weights:
                self.qat.overwrite_weights()
        return self

    @torch.no_grad()
    def logits(self, module: nn.Module | None = None) -> torch.Tensor:
        module = self.qat.module if module is None else module
        with evaluating(module):
            return module(self.images)

    def convert(self, **about) -> Converted:
        return convert(self.qat, self.network, about)

    def assembled(self, converted: Converted) -> torch.Tensor:
        return self.logits(assemble(self.network, converted, self.images[:1]))


def plan_of(network, example, settings, *, bits=4, granularity="per_tensor", policy=None):
    quant = settings.quantizers(QuantSettings(weight=WeightQuantSettings(granularity=granularity)), bits)
    points = activations(trace(network, example), layers_only=quant.activation.layers_only)
    policy = PolicySettings() if policy is None else policy
    return make_plan(inventory(network, example), policy=policy, quant=quant, bits=bits, mode="int", activations=points)


def prepared(network, images, *, name="lsq", bits=4, granularity="per_tensor", policy=None, ready=True, **settings) -> Case:
    """The network itself becomes part of the result; `Case.network` is a copy from before."""
    before, settings = copy.deepcopy(network), QatSettings(name=name, **settings)
    plan = plan_of(network, images[:1], settings, bits=bits, granularity=granularity, policy=policy)
    case = Case(prepare(network, plan, settings, images[:1]), before, images)
    if ready:
        initialise(case.qat, lambda: batches(images), CalibrateSettings())
    return case


def batches(images, size=4):
    for part in images.split(size):
        yield Batch(part, torch.zeros(len(part), dtype=torch.int64), torch.arange(len(part)), len(part))


@torch.no_grad()
def estimated(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """With batch norm's statistics those of the images, and scales that differ."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    network.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


class Turned(nn.Module):
    """Grouped transposed, depthwise and linear layers before batch norms."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.turned, self.norm1 = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.norm2 = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)
        self.linear, self.norm3 = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm1(self.turned(self.stem(x))))
        x = F.relu(self.norm2(self.depthwise(x)))
        return self.head(F.relu(self.norm3(self.linear(x.mean((2, 3))))))


class Shared(nn.Module):
    """One module under two names, one parameter in two modules, and one that a module and a function read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = self.second = nn.Conv2d(8, 8, 1)
        self.unused, self.one, self.two = (nn.Linear(8, 8) for _ in range(3))
        self.unused.weight = self.two.weight = self.one.weight
        self.both, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(F.relu(self.stem(x))))))
        x = F.relu(F.conv2d(F.relu(self.both(x)), self.both.weight)).mean((2, 3))
        return self.head(F.relu(self.two(F.relu(self.one(x)))))
