"""What a file holds of a quantized network: its graph, and the codes of its weights wherever the values came from.

Weights come quantized after training, rounded to the nearest code of the float network's or as AdaRound learned on the same grid,
or as a quantization-aware training left them, with their scales beside them. Either way the network holds values, and a value
that is not on its grid is refused: the file would not say what was simulated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.types import QParams, QuantSpec
from qexp.deploy.weight_codes import WeightCodes, codes_of, has_codes, weight_codes
from qexp.nn.graph import GraphNetwork, trace
from qexp.quant.schemes import Limits

Grids = Mapping[str, tuple[QuantSpec, QParams | None]]


@dataclass(frozen=True, eq=False)
class Coded:
    """A network as `export_qdq` takes it.

    Args:
        network: in eval mode. weights: state-dict name -> codes, of all that the graph reads and a file can hold.
        left: quantized tensors that a file cannot hold as codes, and why; they are written as float32, at the simulated values.
    """

    network: GraphNetwork
    weights: Mapping[str, WeightCodes]
    left: Mapping[str, str]


@torch.no_grad()
def coded(
    module: nn.Module,
    example: Tensor,
    grids: Grids,
    *,
    reference: nn.Module | None = None,
    limits: Mapping[str, Limits] | None = None,
    constant: Collection[str] = (),
) -> Coded:
    """The graph and the codes of a network that was quantized: after training, in training, or (no grids) not at all.

    Args:
        module: with quantized weights, fake quantization at its places or none. example: [1 or more, C, H, W].
        grids: name -> spec and grid, None where it is to be found from the float weight: `qexp.qat.convert.Converted.weights`,
            or the specs of a plan.
        reference, limits, constant: of `qexp.experiment.build.Built`, after training: the float network, what its weights were
            clipped to, and those that were left alone since they have no range.

    Raises:
        UserError: a value is off its grid, or the network cannot be traced.
    """
    network = module if isinstance(module, GraphNetwork) else trace(module, example).build()
    values = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    floats = {} if reference is None else dict(reference.named_parameters()) | dict(reference.named_buffers())
    weights, left = {}, {}
    for name, (spec, qparams) in grids.items():
        if name in constant:
            left[name] = "constant, it has no range and was left alone"
        elif not has_codes(spec):
            left[name] = f"a file has no codes for {_describe(spec)}"
        else:
            source = floats.get(name, values[name])
            found = _codes(name, values[name], source, spec, qparams, (limits or {}).get(name))
            if found is None:
                left[name] = f"its {spec.scheme} grid was not kept"
            for each in [] if found is None else _read_as(network, name, values):
                weights[each] = found
    return Coded(network.eval(), weights, left)


def _codes(
    name: str, values: Tensor, source: Tensor, spec: QuantSpec, qparams: QParams | None, limits: Limits | None
) -> WeightCodes | None:
    """The codes of values; None where a grid that was not kept does not follow from them."""
    if qparams is not None:
        return codes_of(name, values.cpu(), qparams)
    found = weight_codes(source.cpu(), spec, None if limits is None else (limits[0].cpu(), limits[1].cpu()))
    try:
        return codes_of(name, values.cpu(), found.qparams)
    except UserError:
        if source is values:
            return None
        raise


def _read_as(network: GraphNetwork, name: str, values: Mapping[str, Tensor]) -> list[str]:
    """The names under which the graph reads a tensor: its own, or those that share its memory; its own where nothing does."""
    read = set()
    for node in network.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            read.add(str(node.target) + (".weight" if node.op == "call_module" else ""))
    same = [other for other, value in values.items() if value is values[name] and other in read]
    return same or [name]


def _describe(spec: QuantSpec) -> str:
    odd = [spec.granularity] if spec.granularity not in ("per_tensor", "per_channel") else []
    return " ".join([spec.scheme, *odd, *([] if spec.mode == "int" else [f"in mode {spec.mode}"])])
