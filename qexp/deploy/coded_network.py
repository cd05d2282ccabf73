"""What a file holds of a quantized network: its graph, and the codes of its weights wherever the values came from.

Weights come quantized after training, rounded to the nearest code of the float network's or as AdaRound learned on the same grid,
or as a quantization-aware training left them, with their scales beside them. Either way the network holds values, and a value
that is not on its grid is refused: the file would not say what was simulated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.modules import named_tensors
from qexp.base.types import QParams, QuantSpec
from qexp.config.export import FILE_GRANULARITIES
from qexp.deploy.in_float import InFloat, in_float_weight, is_in_float
from qexp.deploy.weight_codes import WeightCodes, codes_of, has_codes, weight_codes
from qexp.nn.graph import GraphNetwork, trace
from qexp.nn.plain_layers import layers_as_modules
from qexp.quant.scheme_table import scheme_name
from qexp.quant.schemes import Limits

Grids = Mapping[str, tuple[QuantSpec, QParams | None]]


@dataclass(frozen=True, eq=False)
class CodedNetwork:
    """A network with the codes of its weights, as `export_qdq` takes it.

    Args:
        network: in eval mode.
        weights: state-dict name -> codes, of all that the graph reads and a file can hold.
        kept_float: quantized tensors that a file cannot hold as codes, and why; they are written as float32, at the simulated
            values.
        in_float: state-dict name -> numbers or codes of those that runtimes compute with in float.
    """

    network: GraphNetwork
    weights: Mapping[str, WeightCodes]
    kept_float: Mapping[str, str]
    in_float: Mapping[str, InFloat] = field(default_factory=dict)


@torch.no_grad()
def code_network(
    module: nn.Module,
    example: Tensor,
    grids: Grids,
    *,
    reference: nn.Module | None = None,
    limits: Mapping[str, Limits] | None = None,
    constant: Collection[str] = (),
) -> CodedNetwork:
    """The graph and the codes of a network that was quantized: after training, in training, or (no grids) not at all.

    Args:
        module: with quantized weights, with fake quantization of its activations or without.
        example: [1 or more, C, H, W].
        grids: name -> spec and grid, None where it follows from the float weight: `qexp.qat.convert.Converted.weights`, or the
            specs of a plan.
        reference: of `qexp.experiment.build.Built`, after training: the float network.
        limits: of `Built`: name -> what the weight was clipped to.
        constant: of `Built`: names of the weights that have no range and were left alone.

    Raises:
        UserError: a value is off its grid, or the network cannot be traced.
    """
    network = layers_as_modules(module if isinstance(module, GraphNetwork) else trace(module, example).build())
    values = named_tensors(network)
    floats = {} if reference is None else reference.state_dict()
    weights: dict[str, WeightCodes] = {}
    kept_float: dict[str, str] = {}
    in_float: dict[str, InFloat] = {}
    for name, (spec, qparams) in grids.items():
        if name in constant:
            kept_float[name] = "constant, it has no range and was left alone"
        elif not (has_codes(spec) or is_in_float(spec)):
            kept_float[name] = f"a file has no codes for {_describe(spec)}"
        else:
            source = floats.get(name, values[name])
            coded = _coded(name, values[name], source, spec, qparams, (limits or {}).get(name))
            if coded is None:
                kept_float[name] = f"its {scheme_name(spec.scheme)} grid was not kept"
            elif isinstance(coded, WeightCodes):
                weights |= dict.fromkeys(names_read(network, name, values), coded)
            else:
                in_float |= dict.fromkeys(names_read(network, name, values), coded)
    return CodedNetwork(network.eval(), weights, kept_float, in_float)


def _on_cpu(limits: Limits | None) -> Limits | None:
    return None if limits is None else (limits[0].cpu(), limits[1].cpu())


def _coded(
    name: str, values: Tensor, source: Tensor, spec: QuantSpec, qparams: QParams | None, limits: Limits | None
) -> WeightCodes | InFloat | None:
    """What a file holds of values; None where a grid that was not kept does not follow from them."""
    if qparams is not None:
        return codes_of(name, values.cpu(), qparams)
    own, clipped = source.cpu(), _on_cpu(limits)
    nearest = None if is_in_float(spec) else weight_codes(own, spec, clipped)
    try:
        if nearest is None:
            return in_float_weight(name, values.cpu(), own, spec, clipped)
        return codes_of(name, values.cpu(), nearest.qparams)
    except UserError:
        if source is values:
            return None
        raise


def names_read(network: GraphNetwork, name: str, values: Mapping[str, Tensor]) -> list[str]:
    """The names under which the graph reads a tensor: its own, or those that share its memory; its own where nothing does.

    Args:
        network: whose graph.
        name: of the tensor.
        values: of `named_tensors(network)`.
    """
    read = set()
    for node in network.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            read.add(str(node.target) + (".weight" if node.op == "call_module" else ""))
    same = [other for other, value in values.items() if value is values[name] and other in read]
    return same or [name]


def _describe(spec: QuantSpec) -> str:
    odd = [spec.granularity] if spec.granularity not in FILE_GRANULARITIES else []
    return " ".join([scheme_name(spec.scheme), *odd, *([] if spec.mode == "int" else [f"in mode {spec.mode}"])])
