"""Estimates of a layer's sensitivity without running the network quantized: from its error, gradients and curvature.

Gradients are of the mean cross-entropy L on labelled images, of the float network in eval mode. Shapes: N images, C channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.analysis.measures import sqnr_db
from qexp.base.outputs import main_output
from qexp.base.progress import track
from qexp.base.types import Batch
from qexp.nn.graph import evaluating

_CONV, _TRANSPOSED = nn.modules.conv._ConvNd, nn.modules.conv._ConvTransposeNd


def weight_errors(source: Tensor, copied: Tensor) -> dict[str, float | None]:
    """`sqnr_db`, `noise_to_signal` = sum (w - w^)^2 / sum w^2 and `mse` = mean (w - w^)^2, float64.

    Args:
        source: the weight.
        copied: its quantized copy, same shape.

    >>> weight_errors(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    {'sqnr_db': 20.0, 'noise_to_signal': 0.01, 'mse': 0.125}
    """
    signal, noise = float(source.double().square().sum()), float((source.double() - copied.double()).square().sum())
    ratio = noise / signal if signal else 0.0
    return {"sqnr_db": sqnr_db(signal, noise), "noise_to_signal": ratio, "mse": noise / max(source.numel(), 1)}


def fisher_error(source: Tensor, copied: Tensor, fisher: Tensor) -> float:
    """1/2 sum E[g^2] (w - w^)^2: the rise of the loss to second order, with the diagonal empirical Fisher for the Hessian.

    Args:
        source: the weight.
        copied: its quantized copy, same shape.
        fisher: E[g^2] of `fisher_diagonal`, same shape.
    """
    return 0.5 * float((fisher.double() * (source.double() - copied.double()).square()).sum())


def hessian_error(source: Tensor, copied: Tensor, trace: float) -> float:
    """1/2 (trace / elements) sum (w - w^)^2, HAWQ-V2's measure.

    Args:
        source: the weight.
        copied: its quantized copy, same shape.
        trace: of the loss's Hessian with respect to this weight.

    Source: Dong et al. 2020, arXiv:1911.03852.
    """
    return 0.5 * trace / max(source.numel(), 1) * float((source.double() - copied.double()).square().sum())


def weighted_error(owner: nn.Module, source: Tensor, copied: Tensor, power: Tensor) -> float:
    """Sum of squared errors, each times the mean square of the input channel that it multiplies.

    For inputs that are uncorrelated this is the mean squared error of an output value, summed over output channels.

    Args:
        owner: the convolution or linear layer.
        source: the weight.
        copied: its quantized copy, same shape.
        power: of `input_power`, [C_in].

    >>> weighted_error(nn.Linear(2, 1), torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([10.0, 0.5]))
    12.0
    """
    squared = (source.double() - copied.double()).square()
    if isinstance(owner, _TRANSPOSED):  # [C_in, C_out / groups, ...]
        by_input = squared.flatten(1).sum(1)
    elif isinstance(owner, _CONV):  # [C_out, C_in / groups, ...]
        by_output = squared.flatten(2).sum(2)
        by_input = by_output.view(owner.groups, -1, by_output.shape[1]).sum(1).flatten()
    else:
        by_input = squared.sum(0)
    return float((by_input * power.double().to(by_input.device)).sum())


def input_power(network: nn.Module, names: Iterable[str], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Module -> mean square of each of its input channels over images and positions, float64 [C_in].

    Args:
        network: float.
        names: of modules; those that are no convolution or linear layer are left out.
        batches: of images.
    """
    modules = {name: network.get_submodule(name) for name in names}
    modules = {name: module for name, module in modules.items() if isinstance(module, _CONV | nn.Linear)}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(modules, 0)

    def watch(name: str, owner: nn.Module, values: Tensor) -> None:
        if isinstance(owner, _CONV):
            batched = values if values.dim() == owner.weight.dim() else values[None]
            values = batched.movedim(1, -1)
        flat = values.detach().double().flatten(0, -2)
        sums[name] = sums.get(name, 0) + flat.square().sum(0)
        counts[name] += len(flat)

    hooks = [
        module.register_forward_pre_hook(lambda owner, args, name=name: watch(name, owner, args[0]))
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad(), evaluating(network):
            for batch in batches:
                network(batch.images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}


def fisher_diagonal(network: nn.Module, names: Sequence[str], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Parameter -> E[g^2], the mean over images of the squared gradient of that image's cross-entropy; shape of the parameter.

    The labels are the true ones, so this is the empirical Fisher information. One image at a time: `torch.func.vmap` takes more
    memory and refuses networks whose forward looks at values.

    Args:
        network: float.
        names: of parameters.
        batches: of images with labels.
    """
    with _learning(network, names) as tensors:
        sums = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        count = 0
        for batch in batches:
            for image, label in zip(batch.images, batch.labels, strict=True):
                loss = F.cross_entropy(main_output(network(image[None])).float(), label[None])
                count += 1
                if not loss.requires_grad:  # it depends on none of them
                    continue
                gradients = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)
                for name, gradient in zip(tensors, gradients, strict=True):
                    sums[name] += gradient.square()
    return {name: total / max(count, 1) for name, total in sums.items()}


def hessian_traces(
    network: nn.Module, names: Sequence[str], batches: Iterable[Batch], *, probes: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Parameter -> trace of the Hessian of L with respect to it, and the estimate's standard error, by Hutchinson's method.

    tr H = E[z'Hz], z of independent signs. One product with the Hessian of all parameters serves all of them: the terms between
    two parameters have mean zero.

    Args:
        network: float.
        names: of parameters.
        batches: of images with labels.
        probes: draws of z, at least 2.
        seed: of them.

    Source: Hutchinson 1990, A stochastic estimator of the trace of the influence matrix; Yao et al. 2020, arXiv:1912.07145.
    """
    generator = torch.Generator().manual_seed(seed)
    totals, count = torch.zeros(probes, len(names), dtype=torch.float64), 0
    with _learning(network, names) as tensors:
        values = list(tensors.values())
        for batch in batches:
            loss = F.cross_entropy(main_output(network(batch.images)).float(), batch.labels)
            count += len(batch.labels)
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
            curved = [number for number, gradient in enumerate(gradients) if gradient.requires_grad]
            if not curved:
                continue
            for probe in track(range(probes), "probe"):
                signs = [torch.randint(0, 2, value.shape, generator=generator).to(value).mul_(2).sub_(1) for value in values]
                products = torch.autograd.grad(
                    [gradients[number] for number in curved],
                    values,
                    [signs[number] for number in curved],
                    retain_graph=True,
                    materialize_grads=True,
                )
                estimates = [float((sign * product).double().sum()) for sign, product in zip(signs, products, strict=True)]
                totals[probe] += len(batch.labels) * torch.tensor(estimates, dtype=torch.float64)
    means = totals / max(count, 1)
    errors = means.std(0) / probes**0.5
    return {name: (float(means[:, number].mean()), float(errors[number])) for number, name in enumerate(names)}


@contextlib.contextmanager
def _learning(network: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    """The named parameters of a network in eval mode, and gradients for them alone; both as before in the end."""
    tensors = dict(network.named_parameters(remove_duplicate=False))
    chosen = {name: tensors[name] for name in names}
    before = {name: tensor.requires_grad for name, tensor in tensors.items()}
    try:
        for tensor in tensors.values():
            tensor.requires_grad_(False)
        for tensor in chosen.values():
            tensor.requires_grad_(True)
        with evaluating(network), torch.enable_grad():
            yield chosen
    finally:
        for name, tensor in tensors.items():
            tensor.requires_grad_(before[name])
