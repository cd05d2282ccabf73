"""Fake quantization of activations in a network: modules at the points of a plan, and identities that are observed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError, nearest
from qexp.base.types import Plan, QuantSpec
from qexp.nn.activation_points import ActivationPoint, find_activation_points
from qexp.nn.fake_quantize import FakeQuantize, FloatFakeQuantize
from qexp.nn.graph import GraphNetwork, Insertion, Traced
from qexp.nn.watching import Watch, watching
from qexp.quant.scheme_table import SCHEMES

CONTAINER = "activation_fake_quant"  # where the modules lie in the network, by the names of their points


class Observed(nn.Module):
    """The identity at an activation point, for `observing`.

    Args:
        name: of the point.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


def insert(traced: Traced, plan: Plan, network: nn.Module | None = None) -> GraphNetwork:
    """The network with fake quantization at the activations of a plan; static ones wait for their ranges (`fake_quants`).

    Parameters and buffers, their names and the modes of modules are the network's, shared; the new buffers lie in
    `activation_fake_quant`.

    Args:
        traced: of `qexp.nn.graph.trace`.
        plan: whose activations were planned from `qexp.nn.activation_points.activations(traced)`.
        network: share these weights instead: a copy of the traced network, folded or not.

    Raises:
        UserError: the plan names an activation point that the network does not have.
    """
    specs = plan.quantized_activations
    insertions = []
    source = traced.root if network is None else network
    device = next((tensor.device for tensor in source.state_dict().values()), torch.device("cpu"))
    for name, point in planned_points(traced, specs).items():
        info, spec = point.info, specs[name]
        channels = (1, *info.shape)[info.channel_axis] if spec.granularity == "per_channel" else None
        kind = FakeQuantize if SCHEMES[spec.scheme].affine_activations else FloatFakeQuantize
        module = kind(name, spec, channels).to(device)
        for node, overwritable in zip(point.nodes, point.overwritable, strict=True):
            options = {"overwrite": True} if overwritable else {}
            insertions.append(Insertion(node, f"{CONTAINER}.{name}", module, point.users, options))
    return traced.build(insertions, network)


def observed(
    traced: Traced, *, layers_only: bool = False, network: nn.Module | None = None, extra: Sequence[Insertion] = ()
) -> GraphNetwork:
    """The network with an `Observed` at every activation point, for `observing`; weights shared as by `insert`.

    Args:
        traced: of `qexp.nn.graph.trace`.
        layers_only: only at what layers and matrix products read.
        network: share these weights instead of the traced network's.
        extra: what else to insert.
    """
    insertions = list(extra)
    for point in find_activation_points(traced, layers_only=layers_only):
        module = Observed(point.info.name)
        insertions += [Insertion(node, f"{CONTAINER}.{module.name}", module, point.users) for node in point.nodes]
    return traced.build(insertions, network)


@contextmanager
def observing(model: nn.Module, watch: Watch) -> Iterator[None]:
    """While it lasts, `watch(name, values)` is called with what passes every `Observed`; it must not change the values.

    Args:
        model: of `observed`.
        watch: gets the name of the activation point, and the values.
    """
    with watching({module.name: module for module in model.modules() if isinstance(module, Observed)}, watch):
        yield


def fake_quants(model: nn.Module) -> dict[str, FakeQuantize]:
    """Name of an activation point -> its module, in the order of the network."""
    return {module.name: module for module in model.modules() if isinstance(module, FakeQuantize)}


def planned_points(traced: Traced, specs: Mapping[str, QuantSpec]) -> dict[str, ActivationPoint]:
    """The activation points of these names, in order of execution.

    Args:
        traced: of `qexp.nn.graph.trace`.
        specs: name of an activation point -> its quantizer; all of one kind, at layers only or everywhere.

    Raises:
        UserError: the network has no point of a name.
    """
    layers_only = any(spec.layers_only or spec.dynamic for spec in specs.values())
    assert layers_only == all(spec.layers_only or spec.dynamic for spec in specs.values()) or not specs, "two kinds of points"
    points = {point.info.name: point for point in find_activation_points(traced, layers_only=layers_only)}
    for name in specs:
        if name not in points:
            raise UserError("activation", name, allowed="a place of the network's graph", remedy=nearest(name, points))
    return {name: point for name, point in points.items() if name in specs}
