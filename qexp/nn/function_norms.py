"""Batch norms that functions compute, as modules: a class derived from `nn.BatchNorm2d` that activates too, as timm's.

What is asked of batch norms (folding, re-estimation, ranges told by their statistics) is asked of torch's modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.nn.channels import NORMS
from qexp.nn.graph import GraphNetwork, attach
from qexp.nn.layer_calls import is_attribute

RANK = "rank"  # in a node's meta: dimensions of its value
_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_TENSORS = ("running_mean", "running_var", "weight", "bias")


def is_function_norm(node: fx.Node) -> bool:
    """True for a function that normalizes by statistics that the network keeps.

    Args:
        node: of a graph in eval mode.
    """
    if node.op != "call_function" or node.target is not F.batch_norm:
        return False
    arguments = _arguments(node)
    kept = all(is_attribute(arguments.get(name)) for name in _TENSORS[:2])
    affine = all(arguments.get(name) is None or is_attribute(arguments[name]) for name in _TENSORS[2:])
    return kept and affine and not arguments.get("training", False) and not is_attribute(arguments["input"])


def norms_as_modules_(network: GraphNetwork) -> None:
    """Call a batch norm for each function that computes one, where the statistics' owner is; others stay. In place.

    Args:
        network: in eval mode, with `RANK` in the meta of its nodes; shares nothing.
    """
    made: dict[str, _BatchNorm] = {}
    for node in [node for node in network.graph.nodes if is_function_norm(node)]:
        arguments = _arguments(node)
        path = str(arguments["running_mean"].target).rpartition(".")[0]
        eps = float(arguments.get("eps", 1e-5))
        if path not in made:
            norm = _norm_at(network, path, arguments, eps, node.meta.get(RANK))
            if norm is None:
                continue
            made[path] = norm
            attach(network, path, norm)
        if made[path].eps != eps:
            continue
        with network.graph.inserting_after(node):
            twin = network.graph.call_module(path, (arguments["input"],))
        twin.meta = dict(node.meta)
        node.replace_all_uses_with(twin)
        network.graph.erase_node(node)
    for node in reversed(list(network.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            network.graph.erase_node(node)
    network.recompile()


def _norm_at(network: GraphNetwork, path: str, arguments: dict[str, Any], eps: float, rank: int | None) -> _BatchNorm | None:
    """Torch's batch norm with the tensors of the module at a path; None where these are not all that a function reads."""
    owner = network.get_submodule(path) if path else None
    if owner is None:
        return None
    tensors: dict[str, Tensor | None] = {**owner._parameters, **owner._buffers}
    expected = {name: f"{path}.{name}" for name in _TENSORS if tensors.get(name) is not None}
    read = {name: str(arguments[name].target) for name in _TENSORS if arguments.get(name) is not None}
    extra = {name for name, value in tensors.items() if value is not None} - {*_TENSORS, "num_batches_tracked"}
    by_rank = {2: NORMS[0], 3: NORMS[0], 4: NORMS[1], 5: NORMS[2]}
    kind = next((kind for kind in NORMS if isinstance(owner, kind)), by_rank.get(rank or 0))
    mean = tensors.get("running_mean")
    if read != expected or extra or kind is None or mean is None:
        return None
    norm: _BatchNorm = kind(mean.numel(), eps=eps, affine="weight" in expected, device=torch.device("meta"))
    norm._parameters, norm._buffers = dict(owner._parameters), dict(owner._buffers)
    for name in ("weight", "bias"):
        norm._parameters.setdefault(name, None)
    norm._buffers.setdefault("num_batches_tracked", None)
    norm._modules = dict(owner._modules)
    return norm.train(network.training)


def _arguments(node: fx.Node) -> dict[str, Any]:
    return dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
