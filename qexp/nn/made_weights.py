"""Weights that a network makes of other parameters at each forward, turned into parameters that can be planned and quantized.

torch's `prune`, `weight_norm` and `spectral_norm` leave such a weight as an attribute that a hook writes before each forward,
parametrizations as a property. A copy whose weight was overwritten would have it made anew by its next forward,
so that nothing was quantized or folded. Rejected: to quantize the parameters behind it, which no layer multiplies by.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from qexp.base.errors import UserError
from qexp.nn.channels import is_layer
from qexp.nn.compare import check_same, outputs_on_noise
from qexp.nn.graph import evaluating


def made_weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights that a hook or a parametrization makes (`conv1.weight`).

    Raises:
        UserError: a layer's weight that a hook of an unknown kind makes.
    """
    return tuple(f"{path}.{name}".lstrip(".") for path, _, name in _made(model))


def bake_weights_(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Make those weights parameters, with the values that eval mode gives them; returns their names.

    Args:
        model: changed in place.
        example: [N, C, H, W] images as the network takes them, on its device; N = 1 suffices.

    Raises:
        UserError: a hook of an unknown kind, or a network that gives other numbers afterwards.

    >>> net = nn.Sequential(prune.l1_unstructured(nn.Linear(4, 2), "weight", amount=0.5))
    >>> bake_weights_(net, torch.ones(1, 4)), sorted(net.state_dict())
    (('0.weight',), ['0.bias', '0.weight'])
    """
    names = made_weights(model)
    if not names:
        return ()
    expected = outputs_on_noise(model, example)
    with evaluating(model), torch.enable_grad():  # torch tells by it that what it leaves is a parameter
        for _, module, name in list(_made(model)):
            _bake_(module, name)
    check_same(expected, outputs_on_noise(model, example), f"{', '.join(names[:5])} made permanent")
    return names


def _made(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Path of a module, the module, and the name of a tensor that is made for it."""
    for path, module in list(model.named_modules()):
        names = [name for hook in module._forward_pre_hooks.values() if (name := _name_of(hook)) is not None]
        if parametrize.is_parametrized(module):
            names += list(module.parametrizations)
        if is_layer(module) and "weight" in module.__dict__ and "weight" not in names:
            remedy = "Make it a parameter before you return the network, or use torch.nn.utils.parametrize."
            raise UserError("model", f"{path}.weight, which a hook makes", allowed="weights that are parameters", remedy=remedy)
        yield from ((path, module, name) for name in dict.fromkeys(names))


def _name_of(hook: object) -> str | None:
    """The tensor that a hook of torch's makes."""
    if isinstance(hook, prune.BasePruningMethod):
        return str(hook._tensor_name)
    return hook.name if isinstance(hook, WeightNorm | SpectralNorm) else None


def _bake_(module: nn.Module, name: str) -> None:
    """Make one tensor a parameter; hooks may stand upon each other, and upon a parametrization."""
    for hook in reversed(list(module._forward_pre_hooks.values())):
        if _name_of(hook) == name:
            remove = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}.get(type(hook), prune.remove)
            remove(module, name)
    for key, loaded in list(module._load_state_dict_pre_hooks.items()):  # torch does not find what it has wrapped itself
        inner = getattr(loaded, "hook", None)
        if isinstance(inner, SpectralNormLoadStateDictPreHook) and inner.fn.name == name:
            del module._load_state_dict_pre_hooks[key]
    if parametrize.is_parametrized(module, name):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    if name in module._buffers:  # torch's choice where nothing behind it has a gradient
        value = module._buffers.pop(name)
        assert value is not None
        module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
