"""From a trained network with quantizers to a plain state dict and the quantization parameters beside it, and to a file of both.

The state dict fits the network that was trained (with folding, the network folded) and holds the values of the codes; whoever
loads it without the rest has a float network with quantized weights. Evaluating the converted network is how a quantization-aware
training is scored, so what is read back from the file computes the same numbers, bit for bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.files import canonical_json, check_readable, write_atomic
from qexp.base.types import ActivationInfo, ActivationRow, Plan, PlanRow, QParams, QuantSpec, TensorInfo
from qexp.nn.fake_quant import fake_quants, insert
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import evaluating, trace
from qexp.qat.folded_weight import FoldedWeight
from qexp.qat.prepare import QatNetwork

CONVERTED_VERSION = 1  # of the file
_HEADER = "qexp_converted"
_RULE = "as trained"

Grid = tuple[QuantSpec, QParams]


@dataclass(frozen=True, eq=False, kw_only=True)
class Converted:
    """A network that was trained with its quantization, ready to be evaluated or exported.

    Args:
        state: plain state dict, float32 on the CPU; quantized weights hold the values of their codes.
        weights: name -> grid, value = (code - zero_point) * scale; no parameters (None) where the scheme stores codes otherwise.
        activations: activation point of the graph -> grid.
        folded: the state is the folded network's.
        about: method, model, bits and what else its reader wants to know; plain values.
    """

    state: Mapping[str, Tensor]
    weights: Mapping[str, tuple[QuantSpec, QParams | None]]
    activations: Mapping[str, Grid]
    folded: bool
    about: Mapping[str, object]

    @property
    def bits(self) -> int:
        """The width that it was trained with."""
        bits = self.about["bits"]
        assert isinstance(bits, int)
        return bits

    def plan(self, tensors: tuple[TensorInfo, ...], points: Mapping[str, ActivationInfo]) -> Plan:
        """What is quantized how, as a plan of the (folded) network.

        Args:
            tensors: its inventory.
            points: name -> activation point of its graph.
        """
        rows = tuple(
            PlanRow(info, self.weights[info.name][0], _RULE)
            if info.name in self.weights
            else PlanRow(info, None, "", "left alone in training")
            for info in tensors
        )
        absent = sorted(self.activations.keys() - points.keys())
        if absent:
            raise UserError("checkpoint", absent[0], allowed="a file converted from this network, whose graph has that place")
        quantized = [(info, self.activations[name][0]) for name, info in points.items() if name in self.activations]
        activations = tuple(ActivationRow(info, spec, _RULE) for info, spec in quantized)
        return Plan(rows=rows, mode="int", activations=activations)


@torch.no_grad()
def convert(
    qat: QatNetwork, network: nn.Module, about: Mapping[str, object], refine: Callable[[nn.Module], object] | None = None
) -> Converted:
    """The network as it stands, quantized.

    Args:
        qat: initialised; not changed.
        network: the float network that it was prepared from, with any weights; not changed.
        about: for the file's reader.
        refine: may change batch norm's statistics of the network with quantized weights, in place.
    """
    with evaluating(qat.module):
        masters, values = qat.masters(), {}
        weights: dict[str, tuple[QuantSpec, QParams | None]] = {}
        for name, spec in qat.plan.quantized.items():
            values[name], qparams = _quantized_weight(qat, name, masters[name])
            weights[name] = spec, qparams
        activations = {name: (quantizer.spec, _on_cpu(quantizer.qparams)) for name, quantizer in qat.activations.items()}
    plain = copy.deepcopy(network).eval()
    plain.load_state_dict(masters)
    if qat.norms:
        plain = fold_batch_norm(plain).model
    tensors = dict(plain.named_parameters(remove_duplicate=False))
    for name, value in values.items():
        tensors[name].copy_(value)
    if refine is not None:
        refine(plain)
    state = {name: value.detach().cpu().clone() for name, value in plain.state_dict().items()}
    return Converted(state=state, weights=weights, activations=activations, folded=bool(qat.norms), about=dict(about))


def _quantized_weight(qat: QatNetwork, name: str, master: Tensor) -> tuple[Tensor, QParams | None]:
    """The values of a weight's codes, and its grid."""
    module = qat.weights.get(name)
    if module is None:
        return master, None  # every_step: it is stored quantized
    quantizer = module.quantizer if isinstance(module, FoldedWeight) else module
    values = module.folded(master) if isinstance(module, FoldedWeight) else master
    return quantizer(values), _on_cpu(quantizer.at(values))


def _on_cpu(qparams: QParams) -> QParams:
    """A copy on the CPU."""
    return replace(qparams, scale=qparams.scale.detach().cpu().clone(), zero_point=qparams.zero_point.detach().cpu().clone())


def assemble(network: nn.Module, converted: Converted, example: Tensor) -> nn.Module:
    """The converted network, ready to run: float32 images -> float32 logits, in eval mode.

    Args:
        network: the float network, with any weights; not changed.
        converted: what was trained from it.
        example: one image, on its device.

    Raises:
        UserError: the file was converted from another network.
    """
    traced, plain = trace(network, example), plain_network(network, converted)
    rows = tuple(ActivationRow(ActivationInfo(name=name), spec, _RULE) for name, (spec, _) in converted.activations.items())
    module = insert(traced, Plan(rows=(), activations=rows), plain)
    for name, fake_quant in fake_quants(module).items():
        fake_quant.set_qparams(converted.activations[name][1])
    return module.eval()


def plain_network(network: nn.Module, converted: Converted) -> nn.Module:
    """The network with the converted weights and float activations, folded if they are; a copy.

    Args:
        network: the float network, with any weights; not changed.
        converted: what was trained from it.

    Raises:
        UserError: the file was converted from another network.
    """
    plain = fold_batch_norm(copy.deepcopy(network).eval()).model if converted.folded else copy.deepcopy(network)
    try:
        plain.load_state_dict(converted.state)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        allowed = f"a file converted from this network; it holds {converted.about.get('model', 'another')}"
        raise UserError("checkpoint", type(network).__name__, allowed=allowed, remedy=text) from None
    return plain


def save_converted(path: Path, converted: Converted) -> None:
    """Write one safetensors file, whole or not at all: the state under its plain names, scales and zero points beside it.

    Args:
        path: of the file.
        converted: what to write.
    """
    tensors = dict(converted.state)
    header: dict[str, object] = {"version": CONVERTED_VERSION, "folded": converted.folded, "about": converted.about}
    all_grids: tuple[tuple[str, Mapping[str, tuple[QuantSpec, QParams | None]]], ...] = (
        ("weights", converted.weights),
        ("activations", converted.activations),
    )
    for kind, grids in all_grids:
        entries: dict[str, dict[str, object]] = {}
        for name, (spec, qparams) in grids.items():
            entries[name] = {"spec": asdict(spec)}
            if qparams is not None:
                entries[name] |= {"quant_min": qparams.quant_min, "quant_max": qparams.quant_max, "axis": qparams.axis}
                tensors[_key(kind, name, "scale")], tensors[_key(kind, name, "zero_point")] = qparams.scale, qparams.zero_point
        header[kind] = entries
    # A list of names, since safetensors keeps no order.
    header["state"] = list(converted.state)
    whole = {name: value.contiguous().clone() for name, value in tensors.items()}
    write_atomic(path, lambda partial: save_file(whole, partial, metadata={_HEADER: canonical_json(header)}))


def load_converted(path: Path | str) -> Converted | None:
    """Read what `save_converted` wrote; None for any other file that can be read.

    Raises:
        UserError: it is of another version, or damaged.
    """
    check_readable(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()} if header else {}  # noqa: SIM118, it is no dict
    except (SafetensorError, ValueError, OSError):
        return None
    if header is None:
        return None
    try:
        if header["version"] != CONVERTED_VERSION:
            what = f"{path}, converted by version {header['version']}"
            raise UserError("checkpoint", what, allowed=f"a file of version {CONVERTED_VERSION}")
        weights = {
            name: (QuantSpec(**entry["spec"]), _read_qparams(tensors, "weights", name, entry) if "quant_min" in entry else None)
            for name, entry in header["weights"].items()
        }
        activations = {
            name: (QuantSpec(**entry["spec"]), _read_qparams(tensors, "activations", name, entry))
            for name, entry in header["activations"].items()
        }
        state = {name: tensors[name] for name in header["state"]}
        return Converted(state=state, weights=weights, activations=activations, folded=header["folded"], about=header["about"])
    except (KeyError, TypeError, AttributeError):
        raise UserError("checkpoint", path, allowed="an undamaged file of a converted network") from None


def _read_qparams(tensors: Mapping[str, Tensor], kind: str, name: str, entry: Mapping[str, Any]) -> QParams:
    """The grid of one tensor, from its entry in the header and the tensors beside it."""
    scale, zero_point = (tensors[_key(kind, name, part)] for part in ("scale", "zero_point"))
    return QParams(scale, zero_point, entry["quant_min"], entry["quant_max"], entry["axis"])


def _key(kind: str, name: str, part: str) -> str:
    """Where a parameter of a grid lies among the tensors of the file."""
    return f"qparams/{kind}/{name}/{part}"
