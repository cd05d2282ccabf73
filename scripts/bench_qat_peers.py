"""The networks that `bench_qat.py` compares: how qexp, torch, torchao and brevitas put quantization at the same places."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import torch
from bench_ptq import installed
from bench_ptq_libraries import Called, calls, torchao_quantizer
from torch import Tensor, nn

from qexp.base.types import Batch
from qexp.config.calibrate import CalibrateSettings
from qexp.config.policy import PolicySettings
from qexp.config.qat import QatSettings
from qexp.config.quant import QuantSettings
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import CONTAINER
from qexp.nn.graph import evaluating, trace
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan
from qexp.qat.initialise import initialise
from qexp.qat.prepare import QatNetwork, prepare
from qexp.qat.quantizers import BaseQuantizer, LearnedStep

BITS = 4
METHODS = ("lsq", "ste", "pact", "dorefa", "lsq_plus")

Made = tuple[nn.Module, int]  # a network in training mode, and how many quantizations one forward runs


class TorchFakeQuantize(nn.Module):
    """torch's own operator in the place of a quantizer, its numbers read beforehand."""

    def __init__(self, quantizer: BaseQuantizer, at: Tensor | None) -> None:
        super().__init__()
        found = quantizer.qparams if at is None else quantizer.at(at)
        self.numbers = (float(found.scale), int(found.zero_point), found.quant_min, found.quant_max)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, *self.numbers)


class TorchLearnable(nn.Module):
    """torch's own learnable operator in the place of a learned step."""

    def __init__(self, quantizer: LearnedStep) -> None:
        super().__init__()
        self.scale, self.zero_point = nn.Parameter(quantizer.step.detach().reshape(1)), nn.Parameter(torch.zeros(1))
        self.zero_point.data = self.zero_point.data.to(self.scale.device)
        self.rest = (quantizer.quant_min, quantizer.quant_max, quantizer.factor)

    def forward(self, x: Tensor) -> Tensor:
        return torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.zero_point, *self.rest)


def qat_network(network: nn.Module, batch: Tensor, method: str, batch_norm: str = "unfolded") -> QatNetwork:
    """A copy of the network, ready to be trained by one of qexp's methods, as `qexp.train` makes it."""
    settings = QatSettings(name=method, batch_norm=batch_norm)
    quant = settings.quantizers(QuantSettings(), BITS)
    network = copy.deepcopy(network).eval()
    places = activations(trace(network, batch[:1]), layers_only=True)
    tensors = inventory(network, batch[:1])
    plan = make_plan(tensors, policy=PolicySettings(), quant=quant, bits=BITS, mode="int", activations=places)
    made = prepare(network, plan, settings, batch[:1])
    some = Batch(batch, torch.zeros(len(batch)), torch.arange(len(batch)), len(batch))
    initialise(made, lambda: [some], CalibrateSettings())
    made.module.train()
    return made


def with_torch(made: QatNetwork, operator: type[nn.Module]) -> nn.Module:
    """Its module with one of torch's operators for each quantizer."""
    weights, masters = {id(each): name for name, each in made.weights.items()}, made.masters()
    for path, quantizer in list(made.quantizers()):
        parent, _, leaf = path.rpartition(".")
        name = weights.get(id(quantizer))
        # A weight's own range is found on the weight; whatever else there is has been given its values.
        more = () if operator is TorchLearnable else (masters[name] if name is not None else None,)
        setattr(made.module.get_submodule(parent), leaf, operator(quantizer, *more))
    return made.module


def builders(network: nn.Module, batch: Tensor) -> dict[str, Callable[[], Made]]:
    """Peer -> what makes it: a module and the number of its quantizations."""

    def qexp(*how: str) -> Made:
        module = qat_network(network, batch, *how).module
        with evaluating(module):
            return module, calls(module, BaseQuantizer, batch)

    def torch_own(method: str, operator: type[nn.Module]) -> Made:
        module = with_torch(qat_network(network, batch, method), operator)
        with evaluating(module):
            return module, calls(module, operator, batch)

    table: dict[str, Callable[[], Made]] = {"float": lambda: (copy.deepcopy(network).train(), 0)}
    table |= {f"qexp {method}": lambda method=method: qexp(method) for method in METHODS}
    table["qexp lsq, folded"] = lambda: qexp("lsq", "folded")
    table["torch fake_quantize"] = lambda: torch_own("ste", TorchFakeQuantize)
    table["torch learnable"] = lambda: torch_own("lsq", TorchLearnable)
    if installed("torchao"):
        table |= torchao_peers(network, batch, BITS)
    if installed("brevitas"):
        table |= brevitas_peers(network, batch, BITS)
    return table


def torchao_peers(network: nn.Module, batch: Tensor, bits: int) -> dict[str, Callable[[], Made]]:
    """torchao's quantization-aware training of an exported graph: straight through, and with learned scales."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torchao|torch")
    from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize, LearnableFakeQuantize, MovingAverageMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    kinds = (FusedMovingAvgObsFakeQuantize, LearnableFakeQuantize)

    def made(kind: type[nn.Module], **more: object) -> Made:
        constructor = kind.with_args(observer=MovingAverageMinMaxObserver, **more)
        half = 2 ** (bits - 1)
        activation = QuantizationSpec(torch.uint8, constructor, 0, 2 * half - 1, torch.per_tensor_affine)
        weight = QuantizationSpec(torch.int8, constructor, -half, half - 1, torch.per_tensor_symmetric)
        exported = torch.export.export(copy.deepcopy(network).train(), (batch,)).module()
        # What passes codes on is passed over: `prepare_qat_pt2e` wants both inputs of a convolution annotated on itself.
        module = prepare_qat_pt2e(exported, torchao_quantizer(("conv2d", "linear"), (), activation, weight)).to(batch.device)
        count = calls(module, kinds, batch)
        for each in module.modules():
            if isinstance(each, LearnableFakeQuantize):
                each.enable_range_learning()
        return module, count

    return {
        "torchao fused observer": lambda: made(FusedMovingAvgObsFakeQuantize),
        "torchao learnable": lambda: made(LearnableFakeQuantize, use_grad_scaling=True),
    }


def brevitas_peers(network: nn.Module, batch: Tensor, bits: int) -> dict[str, Callable[[], Made]]:
    """brevitas' layers in qexp's graph, and its quantizers at qexp's places."""
    warnings.filterwarnings("ignore", module="brevitas|torch")
    from brevitas.inject.enum import ScalingImplType
    from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
    from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjector
    from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat

    def layer(old: nn.Module, more: dict[str, object]) -> nn.Module | None:
        how = {"bias": old.bias is not None, "weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": bits} | more
        if type(old) is nn.Linear:
            return QuantLinear(old.in_features, old.out_features, **how)
        places = {key: getattr(old, key) for key in ("stride", "padding", "dilation", "groups")}
        return QuantConv2d(old.in_channels, old.out_channels, old.kernel_size, **places, **how)

    def made(**more: object) -> Made:
        qat = qat_network(network, batch, "every_step")  # whose weights have no quantizers
        module = qat.module
        for path, old in list(module.named_modules()):
            if type(old) in (nn.Conv2d, nn.Linear):
                new = layer(old, more)
                new.load_state_dict(network.get_submodule(path).state_dict(), strict=False)
                parent, _, leaf = path.rpartition(".")
                setattr(module.get_submodule(parent), leaf, new)
        for name, quantizer in qat.activations.items():
            parent, _, leaf = f"{CONTAINER}.{name}".rpartition(".")
            # Ranges are learned from the second step on, not from step 300.
            kind = Uint8ActPerTensorFloat if float(quantizer.minimum) >= 0 else Int8ActPerTensorFloat
            setattr(
                module.get_submodule(parent), leaf, Called(QuantIdentity(act_quant=kind, bit_width=bits, collect_stats_steps=1))
            )
        module.to(batch.device).train()
        return module, calls(module, (ActQuantProxyFromInjector, WeightQuantProxyFromInjector), batch)

    return {
        "brevitas": made,
        "brevitas learned": lambda: made(weight_scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS),
    }
