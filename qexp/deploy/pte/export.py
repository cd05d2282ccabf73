"""A quantized network as a .pte file of ExecuTorch, lowered to XNNPACK, with the scales and zero points of qexp.

The program is that of `qexp.deploy.torch_export`, of INT8 codes: the form that ExecuTorch's own quantizer leaves, here without
any observer. XNNPACK takes a layer in integers where its result goes to codes. No operator of it takes codes and gives floats, so
the layer that computes the logits is float, on the values of its codes, as is whatever a sigmoid or SiLU follows. Rejected: INT8
logits, whose step is a hundredth of the largest, so that of 1000 classes the first two may tie.

Beside the file lies the same network with the codes of its activation points as further outputs, as a runtime cannot be asked for
them. A file has room for as many images as `MOST_IMAGES`: ExecuTorch plans memory when it writes.

Rejected: `prepare_pt2e` and `XNNPACKQuantizer`, whose observers choose scales of their own.
"""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qexp.base.errors import UserError
from qexp.base.files import write_atomic
from qexp.base.types import QParams
from qexp.deploy.activation_codes import code_nodes
from qexp.deploy.graph_nodes import quantizer_at
from qexp.deploy.int8_files import check_point, check_weight, signed
from qexp.deploy.onnx.writer import code_type
from qexp.deploy.pte.graph import CODES, clamp_codes_, is_integer, keep_float_weights_, layers_of, match_patterns_, show_codes_
from qexp.deploy.torch_export import make_program
from qexp.deploy.weight_codes import WeightCodes
from qexp.nn.fake_quant import fake_quants
from qexp.nn.graph import GraphNetwork

PTE_SUFFIX, PTE_CODES_SUFFIX = ".pte", ".codes.pte"
MOST_IMAGES = 16  # of one run; a session runs more in parts
ABOUT, INTEGERS, POINTS = "about", "integer_layers", "points"  # constant methods of a file: texts, the last two JSON
INT8, _PLACE = "INT8", "XNNPACK"


@dataclass(frozen=True, eq=False)
class ExportedPte:
    """What was written.

    Args:
        path: of the file.
        size_bytes: its size.
        integer_layers: names of the layers that XNNPACK computes in integers.
    """

    path: Path
    size_bytes: int
    integer_layers: frozenset[str]


def export_pte(
    network: GraphNetwork,
    example: Tensor,
    weights: Mapping[str, WeightCodes],
    path: Path,
    *,
    with_codes: bool = True,
    about: Mapping[str, object] | None = None,
) -> ExportedPte:
    """Write a network: float32 [N, C, H, W] images -> float32 [N, classes] logits, N up to `MOST_IMAGES`.

    Args:
        network: of `qexp.nn.fake_quant.insert`, calibrated, in eval mode; its weights hold the values of their codes.
        example: [1 or more, C, H, W] images of the size to export.
        weights: state-dict name -> codes; other weights are written as float32.
        path: of the file, replaced at once when it is complete.
        with_codes: write the file with the codes of activation points beside it.
        about: for the file's reader, plain values.

    Raises:
        UserError: what XNNPACK cannot hold, by name, or what ExecuTorch cannot lower. Nothing is written.
    """
    for quantizer in fake_quants(network).values():
        check_point(quantizer, _PLACE)
        if code_type(quantizer.qparams) not in ("INT8", "UINT8"):
            remedy = "Quantize activations with at most 8 bits, or ask for another runtime."
            raise UserError(f"{quantizer.name}.bits", quantizer.spec.bits, allowed=f"at most 8 in {_PLACE}", remedy=remedy)
    for name, coded in weights.items():
        check_weight(name, coded, _PLACE)
    program, points = make_program(network, example, weights, grid_of=_signed_grid, most_images=MOST_IMAGES)
    module = program.module(check_guards=False)
    codes = clamp_codes_(module)
    match_patterns_(module)
    integer_layers = keep_float_weights_(module)
    texts = {ABOUT: json.dumps(dict(about or {})), POINTS: "[]"}
    content, ran = _lowered(module, example, integer_layers, texts)
    files = {path: content}
    nodes, shown = code_nodes(network), [(number, point) for number, point in enumerate(points) if point]
    if with_codes and shown:
        show_codes_(module, [codes[number] for number, _ in shown])
        offsets = [(point, _offset(network, nodes[point])) for _, point in shown]
        files[path.with_suffix(PTE_CODES_SUFFIX)] = _lowered(module, example, ran, {**texts, POINTS: json.dumps(offsets)})[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, data in files.items():
        write_atomic(target, functools.partial(Path.write_bytes, data=data))
    return ExportedPte(path, len(content), ran)


def _signed_grid(qparams: QParams) -> tuple[QParams, str]:
    return signed(qparams)[0], INT8


def _offset(network: GraphNetwork, node: fx.Node) -> int:
    """What the file adds to qexp's codes at an activation point."""
    quantizer = quantizer_at(network, node)
    assert quantizer is not None
    return signed(quantizer.qparams)[1]


def _lowered(
    module: fx.GraphModule, example: Tensor, integer_layers: frozenset[str], texts: Mapping[str, str]
) -> tuple[bytes, frozenset[str]]:
    """A file's bytes, and the layers that XNNPACK has in integers in it, which it also names.

    Args:
        module: of a program.
        example: [1 or more, C, H, W].
        integer_layers: those that it should have; where it has others the network is lowered again, to name these.
        texts: the other constant methods.

    Raises:
        UserError: ExecuTorch cannot lower it.
    """
    try:
        with quiet():
            sizes = ({0: torch.export.Dim("N", min=1, max=MOST_IMAGES)},)
            program = torch.export.export(module, (torch.cat([example[:1]] * 2),), dynamic_shapes=sizes)
            edge = to_xnnpack(program, {**texts, INTEGERS: json.dumps(sorted(integer_layers))})
            ran = frozenset(_integer_layers(edge))
            if ran != integer_layers:
                edge = to_xnnpack(program, {**texts, INTEGERS: json.dumps(sorted(ran))})
            bound_images(edge)
            return bytes(edge.to_executorch().buffer), ran
    except UserError:
        raise
    except Exception as error:  # its passes have errors of their own
        message = max((line.strip() for line in str(error).splitlines()), key=len, default=type(error).__name__)
        allowed = "a network that ExecuTorch lowers to XNNPACK"
        raise UserError("export.runtime", "executorch", allowed=allowed, remedy=f"It says: {message}") from error


def to_xnnpack(program: torch.export.ExportedProgram, texts: Mapping[str, str]) -> Any:
    """ExecuTorch's edge program, with what XNNPACK can run handed to it.

    Args:
        program: quantized or not, N any.
        texts: constant methods of the file, by name.

    Raises:
        UserError: ExecuTorch is not installed.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError:
        allowed, remedy = "an environment where the package executorch is installed", "pip install 'qexp[deploy]'"
        raise UserError("export.runtime", "executorch", allowed=allowed, remedy=f"Install it with: {remedy}") from None
    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=dict(texts))


def _integer_layers(edge: Any) -> Iterator[str]:
    """The layers whose codes lie in a part that XNNPACK computes, with a quantizer behind them."""
    for _, part in edge.exported_program().graph_module.named_children():
        program = getattr(part, "original_module", None)
        if program is None or part.backend_id != "XnnpackBackend":
            continue
        names = program.graph_signature.inputs_to_buffers
        for layer, _, codes in layers_of(program.graph_module):
            if is_integer(layer) and codes.name in names:
                yield names[codes.name].removesuffix(CODES)


def bound_images(edge: Any) -> None:
    """Plan memory for `MOST_IMAGES`: torch narrows N to 15 where it asks which kernel a convolution would take.

    Args:
        edge: of `to_xnnpack`, changed in place.
    """
    from torch.utils._sympy.value_ranges import ValueRanges

    for node in edge.exported_program().graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, list | tuple) else [value]:
            for size in tensor.shape if isinstance(tensor, Tensor) else ():
                if isinstance(size, torch.SymInt):  # N, the only one there is, by whatever name
                    ranges = size.node.shape_env.var_to_range
                    ranges.update({name: ValueRanges(known.lower, MOST_IMAGES) for name, known in ranges.items()})


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the library warns of in itself and in torch."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
