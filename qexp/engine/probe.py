"""Is a network's output made of the weights it holds? Perturb them and see.

A copy can look right and never run: apex's opt levels replaced `model.forward` by a closure over the original network,
`copy.deepcopy` copied the closure by reference, and the quantized copy's "accuracy" was the float network's. No accuracy
reveals that; this does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from qexp.base.modules import named_tensors
from qexp.base.outputs import main_output
from qexp.engine.buffers import buffers_kept


def probe(run: Callable[[Tensor], object], state: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, bool]:
    """Perturb each named tensor of `state` in place, and return whether the output of `run` changed in any bit.

    A tensor counts as used if one of two perturbations shows: x -> 1.5 x + a with a = mean|x| (1 where x is 0), or x -> -x -
    2a. Both are far too large to drown in rounding, in a ReLU or in coarse activations. Random layers draw the same numbers in
    every run. Every tensor, and every buffer that a run writes, is bitwise as before in the end.

    Args:
        run: the network as it is called.
        state: the module that holds the tensors.
        names: of its parameters and buffers, as in the state dict.
        images: [N, C, H, W], a few.

    Raises:
        KeyError: `state` has no such parameter or buffer.
    """
    tensors = named_tensors(state)
    with torch.no_grad(), buffers_kept(state):
        before = _bits(run, images)
        return {name: _responds(run, tensors[name], images, before) for name in names}


def check_in_use(reference_net: nn.Module, copy_net: nn.Module, names: Iterable[str], images: Tensor) -> list[str]:
    """The names where the float network's output responds to its tensor and the copy's does not: weights that never run.

    Tensors that the float network does not use either (auxiliary heads) are no mistake and are left out. Both networks must be
    in eval mode; a copy whose call secretly runs another network is found whatever mode that one is in.
    """
    for net in (reference_net, copy_net):
        if net.training:
            raise RuntimeError("a network is in training mode: call .eval() before probing it")
    with buffers_kept(reference_net), buffers_kept(copy_net):
        used = [name for name, responds in probe(reference_net, reference_net, names, images).items() if responds]
        return [name for name, responds in probe(copy_net, copy_net, used, images).items() if not responds]


def _responds(run: Callable[[Tensor], object], tensor: Tensor, images: Tensor, before: Tensor) -> bool:
    kept = tensor.clone()
    try:
        for perturb in (_enlarge, _flip):
            perturb(tensor)
            if not torch.equal(_bits(run, images), before):
                return True
            tensor.copy_(kept)
        return False
    finally:
        tensor.copy_(kept)


def _offset(tensor: Tensor) -> float:
    return float(tensor.abs().float().mean()) or 1.0


def _enlarge(tensor: Tensor) -> None:
    if tensor.is_floating_point():
        tensor.mul_(1.5).add_(_offset(tensor))
    else:
        tensor.copy_(tensor + 1)


def _flip(tensor: Tensor) -> None:
    if tensor.is_floating_point():
        tensor.neg_().sub_(2 * _offset(tensor))
    else:
        tensor.copy_(tensor == 0)


def _bits(run: Callable[[Tensor], object], images: Tensor) -> Tensor:
    """The output's bits, so that NaN equals NaN; dropout that was left on draws the same mask each time."""
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        return main_output(run(images)).float().contiguous().view(torch.int32)
