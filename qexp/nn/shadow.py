"""The shadow of a network: its quantized copy, allocated once and overwritten in place for every variant of every epoch.

A shadow has the network's class, modules and tensor names and none of its memory. What differs per structure, a cast to half or a
quantized input, happens in its class's `forward`; no attribute of an instance is replaced. That matters: a wrapper set on the
*instance* (`model.forward = patched`, as apex's amp did) survives `deepcopy` as a reference to the original network, so that the
"copy" would run the original's weights. Such networks are refused.

`half` is true fp16 on a GPU. On the CPU, whose fp16 convolutions take many times as long as float32, the parameters and buffers
are rounded to fp16 and so is the result of every operation; see `qexp.nn.half`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from qexp.base.errors import UserError, choose
from qexp.base.types import Plan, QuantSpec
from qexp.nn.half import RoundToHalf, round_to_half_
from qexp.nn.input_quant import INPUT_QUANTS
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.schemes import quantize_


class Shadow:
    """A quantized copy of a network, one per structure.

    Args:
        model: the network; copied once, never run or changed.
        half: run in fp16.
        input_quant: name in `INPUT_QUANTS`.
        channels_last: memory format of weights and images.

    Raises:
        UserError: an unknown `input_quant`, or a network with a `forward` set on an instance.
    """

    def __init__(self, model: nn.Module, *, half: bool = False, input_quant: str = "none", channels_last: bool = False) -> None:
        choose("quant.input", input_quant, INPUT_QUANTS)
        refuse_instance_forward(model)
        network = copy.deepcopy(model).requires_grad_(False).eval()
        if channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads lack it
        device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
        self.half, self.input_quant = half, input_quant
        self._emulated = half and device.type == "cpu"
        if self._emulated:
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.is_floating_point():
                    round_to_half_(tensor)
        elif half:
            network = network.half()
        network.__class__ = _shadow_class(type(network))
        network.__dict__["_shadow"] = _Structure(input_quant, half, self._emulated, channels_last)
        self._network = network

    @property
    def module(self) -> nn.Module:
        """The copy, in eval mode: float32 images [N, C, H, W] -> float32 logits; same tensor names as the network."""
        return self._network

    @torch.no_grad()
    def load(self, state_dict: Mapping[str, Tensor], plan: Plan) -> tuple[str, ...]:
        """Overwrite every parameter and buffer: the plan's tensors with their quantized copies, the others as they are.

        Where names share memory (tied parameters), all of them get the quantizer of the first that has one. A planned tensor
        that is constant by now has no range; it stays as it is and is named in the result.

        Args:
            state_dict: of the network; read only.
            plan: made for this structure.

        Returns:
            Names of constant tensors that were left unquantized.

        Raises:
            UserError: the state dict does not fit, or a tensor cannot be quantized; names the tensor.
        """
        assert plan.input_quant == self.input_quant, f"the plan's input is {plan.input_quant}, the shadow's {self.input_quant}"
        assert (plan.mode == "half") == self.half, f"the plan's mode is {plan.mode}, the shadow has half={self.half}"
        targets, specs = self._network.state_dict(), plan.quantized
        _check_fits(targets, state_dict, specs)
        constant = []
        for name in names_by_memory(targets, specs):
            target, source, spec = targets[name], state_dict[name], specs.get(name)
            if spec is None:
                target.copy_(source)
            else:
                try:
                    _quantize_named(name, target, source, spec)
                except ConstantTensorError:
                    target.copy_(source)
                    constant.append(name)
            if self._emulated and target.is_floating_point():
                round_to_half_(target)
        return tuple(constant)


class _Structure:
    """What a shadow does around its network's forward; its own class, so that a network's attributes cannot collide with it."""

    def __init__(self, input_quant: str, half: bool, emulated: bool, channels_last: bool) -> None:
        self.quantize_input, self.half, self.emulated = INPUT_QUANTS[input_quant], half, emulated
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format

    def prepare(self, images: Tensor) -> Tensor:
        images = self.quantize_input(images)
        if self.half:
            images = images.half().float() if self.emulated else images.half()
        return images.to(memory_format=self.memory_format) if images.dim() == 4 else images

    def arithmetic(self) -> contextlib.AbstractContextManager[object]:
        return RoundToHalf() if self.emulated else contextlib.nullcontext()


class _ShadowForward(nn.Module):
    """Mixed in before the network's class: its forward between input quantization and the cast back to float32."""

    def forward(self, images: Tensor) -> Any:
        structure = self.__dict__["_shadow"]
        images = structure.prepare(images)
        with structure.arithmetic():
            logits = super().forward(images)
        return tree_map_only(Tensor, _to_float, logits) if structure.half else logits


def _to_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _shadow_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Shadow{kind.__name__}", (_ShadowForward, kind), {"__module__": kind.__module__})


def refuse_instance_forward(model: nn.Module) -> None:
    """Raise UserError where a module's `forward` is an attribute of the instance, which a copy would share with the original."""
    for name, module in model.named_modules():
        if "forward" in module.__dict__:
            where = f"{name or type(model).__name__}.forward"
            remedy = "A copy would go on running the original network. Define forward in the class, or unwrap the network first."
            raise UserError("model", where, allowed="a network whose modules take forward from their class", remedy=remedy)


def _check_fits(targets: Mapping[str, Tensor], source: Mapping[str, Tensor], specs: Mapping[str, QuantSpec]) -> None:
    """Raise UserError unless the state dict has the shadow's names and shapes."""
    odd = sorted(targets.keys() ^ source.keys())
    if odd:
        raise UserError("state_dict", ", ".join(odd[:5]), allowed="the names of the network's own state dict")
    for name, target in targets.items():
        if target.shape != source[name].shape:
            raise UserError(name, list(source[name].shape), allowed=f"shape {list(target.shape)}")
    assert specs.keys() <= targets.keys(), f"planned but not in the network: {sorted(specs.keys() - targets.keys())[:5]}"


def names_by_memory(targets: Mapping[str, Tensor], specs: Mapping[str, QuantSpec]) -> list[str]:
    """One name per piece of memory: of tied names the first that is quantized, or else the first.

    Args:
        targets: of a state dict.
        specs: name -> its quantizer, of those that are quantized.
    """
    chosen: dict[tuple[object, ...], str] = {}
    for name, tensor in targets.items():
        memory = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else (name,)
        if memory not in chosen or (name in specs and chosen[memory] not in specs):
            chosen[memory] = name
    return list(chosen.values())


def _quantize_named(name: str, target: Tensor, source: Tensor, spec: QuantSpec) -> None:
    """`quantize_`, with the tensor's name in its error."""
    try:
        quantize_(target, source, spec)
    except ConstantTensorError:
        raise
    except UserError as error:
        where = name if error.key == "tensor" else f"{name}: {error.key}"
        raise UserError(where, error.value, allowed=error.allowed, remedy=error.remedy) from None
