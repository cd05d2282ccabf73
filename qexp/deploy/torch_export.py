"""A quantized network as a program of `torch.export`, with integer codes and torch's own operators between codes and values.

Each activation point is `quantize_per_tensor` and `dequantize_per_tensor` of `torch.ops.quantized_decomposed`, each coded weight
a `dequantize_per_channel` of its int8 codes: the form that torch's quantization flow for exported programs (PT2E) converts to,
here with qexp's scales, so that no observer of another library chooses any. As it is, the program simulates in float. Compiled
by Inductor on x86 with its weights frozen, convolutions and linear layers between such pairs become oneDNN's integer kernels.

These operators multiply by 1 / scale, as qexp does by default. Biases stay float, as the network has them: those of the ONNX file
if `load_values_` came before.

Rejected: torchao's flow itself (`prepare_pt2e`, `convert_pt2e`), which wants a Quantizer and an observer for each activation
point to bring numbers in that are known already. What it converts to is this program, and what compiles it is part of torch.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from qexp.base.compiler import cxx_compiler
from qexp.base.errors import UserError
from qexp.base.files import write_atomic
from qexp.base.types import QParams
from qexp.deploy.activation_codes import code_nodes
from qexp.deploy.graph_nodes import called_module
from qexp.deploy.onnx.operators import KEEPS_VALUES, handler_of
from qexp.deploy.onnx.shapes import dropout, identity, split, unbind
from qexp.deploy.onnx.writer import code_type, moved
from qexp.deploy.weight_codes import WeightCodes
from qexp.nn.fake_quantize import FakeQuantize
from qexp.nn.graph import GraphNetwork

PROGRAM_SUFFIX = ".pt2"
_POINTS_FILE = "places.json"
_BATCH = 2  # images of the example; 1 would be taken for a constant

_Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class _Grid(nn.Module):
    """Quantization parameters as torch's operators take them."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qparams: QParams, dtype: str) -> None:
        super().__init__()
        self.axis, self.ends = qparams.axis, (qparams.quant_min, qparams.quant_max, getattr(torch, dtype.lower()))
        if self.axis is None:
            self.numbers = (float(qparams.scale), int(qparams.zero_point))
        else:
            self.register_buffer("scale", qparams.scale.clone())
            self.register_buffer("zero_point", qparams.zero_point.long())

    def quantize(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return torch.ops.quantized_decomposed.quantize_per_tensor(x, *self.numbers, *self.ends)
        return torch.ops.quantized_decomposed.quantize_per_channel(x, self.scale, self.zero_point, self.axis, *self.ends)

    def dequantize(self, codes: Tensor) -> Tensor:
        if self.axis is None:
            return torch.ops.quantized_decomposed.dequantize_per_tensor(codes, *self.numbers, *self.ends)
        return torch.ops.quantized_decomposed.dequantize_per_channel(codes, self.scale, self.zero_point, self.axis, *self.ends)


class _QuantizePoint(nn.Module):
    """An activation point: values -> the values of their codes."""

    def __init__(self, grid: _Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        return self.grid.dequantize(self.grid.quantize(x))


class _CodedLayer(nn.Module):
    """A convolution or linear layer that holds the codes of its weight instead of the weight."""

    codes: Tensor

    def __init__(self, layer: _Layer, weight: WeightCodes) -> None:
        super().__init__()
        self.layer, self.bias = layer, layer.bias
        for name in ("weight", "bias"):
            setattr(layer, name, None)
        self.grid = _Grid(weight.qparams, code_type(weight.qparams))
        self.register_buffer("codes", weight.codes.to(self.grid.ends[-1]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.grid.dequantize(self.codes)
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, self.bias)
        return self.layer._conv_forward(x, weight, self.bias)


@torch.no_grad()
def save_program(
    network: GraphNetwork, example: Tensor, weights: Mapping[str, WeightCodes], path: Path, *, unsigned: bool = True
) -> None:
    """Write the program of a quantized network.

    Args:
        network: as for `make_program`.
        example: as for `make_program`.
        weights: as for `make_program`.
        path: of the file, replaced at once when it is complete.
        unsigned: activations as UINT8; else as INT8, but for a scheme without negative codes.

    Raises:
        UserError: as `make_program`.
    """
    program, points = make_program(network, example, weights, grid_of=lambda qparams: moved(qparams, unsigned=unsigned)[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # a file under the temporary name would make torch warn of its suffix
    torch.export.save(program, buffer, extra_files={_POINTS_FILE: json.dumps(points)})

    def write(target: Path) -> None:
        target.write_bytes(buffer.getbuffer())

    write_atomic(path, write)


@torch.no_grad()
def make_program(
    network: GraphNetwork,
    example: Tensor,
    weights: Mapping[str, WeightCodes],
    *,
    grid_of: Callable[[QParams], tuple[QParams, str]],
    most_images: int | None = None,
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """A quantized network as a program: float32 [N, C, H, W] images -> float32 [N, classes] logits, N any.

    Returns the program, and the activation point of each of its quantizers in order, empty for one that repeats another.

    Args:
        network: as for `qexp.deploy.onnx.qdq.export_qdq`.
        example: [1 or more, C, H, W] images of the size to export.
        weights: state-dict name -> codes; the weights of functions stay float.
        grid_of: the grid of an activation point -> that of the program, and the type of its codes (`INT8`, `UINT8`, ...).
        most_images: the largest N; None for any.

    Raises:
        UserError: each batch has a range of its own, or images are rounded first.
    """
    import torch.ao.quantization.fx._decomposed  # noqa: F401, its import defines the operators

    if network._forward_pre_hooks:
        raise UserError("quant.input", "int or round", allowed="none in an exported network, which takes the images as they are")
    twin = copy.deepcopy(network).eval()
    _lower_(twin, weights, grid_of)
    _keep_codes_(twin)
    names = {node.name: point for point, node in code_nodes(network).items()}
    points = [names.get(node.name, "") for node in twin.graph.nodes if _is_point(twin, node)]
    sizes = ({0: torch.export.Dim("N", min=1, max=most_images)},)
    program = torch.export.export(twin, (torch.cat([example[:1]] * _BATCH),), dynamic_shapes=sizes)
    return program, points


def _lower_(twin: GraphNetwork, weights: Mapping[str, WeightCodes], grid_of: Callable[[QParams], tuple[QParams, str]]) -> None:
    """Replace fake quantization by torch's operators, and weights by codes; in place."""
    read = {str(node.target) for node in twin.graph.nodes if node.op == "get_attr"}
    replacements: dict[int, nn.Module] = {}
    modules = dict(twin.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if isinstance(module, FakeQuantize) and id(module) not in replacements:
            if module.spec.dynamic:
                raise UserError("quant.activation.dynamic", True, allowed="false in a program of torch.export")
            replacements[id(module)] = _QuantizePoint(_Grid(*grid_of(module.qparams)))
        weight = weights.get(f"{name}.weight")
        if isinstance(module, _Layer) and weight is not None and f"{name}.weight" not in read and id(module) not in replacements:
            replacements[id(module)] = _CodedLayer(module, weight)
    for name, module in modules.items():
        if id(module) in replacements:
            parent, _, last = name.rpartition(".")
            setattr(twin.get_submodule(parent), last, replacements[id(module)])


def _keep_codes_(twin: GraphNetwork) -> None:
    """Quantize once more, on the same grid, what only moves codes (max pooling, reshaping): exact, and it finds kernels."""
    grids: dict[fx.Node, str | None] = {}
    for node in list(twin.graph.nodes):
        module = called_module(twin, node)
        handler = handler_of(node, module) if node.op.startswith("call") else None
        targets = {grids.get(operand) for operand in node.all_input_nodes}
        target = targets.pop() if len(targets) == 1 else None
        if isinstance(module, _QuantizePoint):
            grids[node] = str(node.target) if module.grid.axis is None else None
        elif handler in (identity, dropout, split, unbind):
            grids[node] = target
        elif handler in KEEPS_VALUES and target is not None:
            with twin.graph.inserting_after(node):
                repeated = twin.graph.call_module(target, (node,))
            node.replace_all_uses_with(repeated, delete_user_cb=lambda user, repeated=repeated: user is not repeated)
            grids[repeated] = target
    twin.recompile()


def _is_point(network: GraphNetwork, node: fx.Node) -> bool:
    return isinstance(called_module(network, node), _QuantizePoint)


def open_program(path: Path, points: Sequence[str] = ()) -> Callable[[Tensor, bool], Sequence[Tensor]]:
    """Load a program: (images, with codes?) -> logits, and the codes of the activation points behind them.

    Compiled at the first call for each batch size, where there is a C++ compiler; else run as it is, which simulates.

    Args:
        path: of `save_program`.
        points: whose codes to give, as stored in the file.

    Raises:
        UserError: there is no such file.
    """
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    if not path.exists():
        raise UserError("export.runtime", "torch", allowed=f"a network whose program was saved as {path.name}")
    extra = {_POINTS_FILE: ""}
    program = torch.export.load(path, extra_files=extra)
    order = json.loads(extra[_POINTS_FILE])  # of the quantizers; those that are no activation point of their own have no name
    chosen = [order.index(point) for point in points]
    compiled = {with_codes: _compiled(program, chosen if with_codes else []) for with_codes in (False, True)}

    @torch.no_grad()
    def call(images: Tensor, with_codes: bool) -> Sequence[Tensor]:
        return compiled[with_codes](images)

    return call


def _compiled(program: torch.export.ExportedProgram, chosen: Sequence[int]) -> Callable[[Tensor], Sequence[Tensor]]:
    """The program as a function of the images that gives a tuple: the logits, and what the chosen quantizers give."""
    module = program.module(check_guards=False)
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())  # arguments and results as they are, without torch.export's packing
    quantizers = [node for node in graph.nodes if ".quantize_per" in str(node.target)]
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((output.args[0][0], *(quantizers[number] for number in chosen)),)
    module.recompile()
    if not has_compiler():
        return module
    from torch._inductor import config

    with _unwarned():
        compiled = torch.compile(module, dynamic=False)
    known: set[torch.Size] = set()

    def call(images: Tensor) -> Sequence[Tensor]:
        with config.patch(freezing=True):  # as an option of torch.compile it comes too late for dynamo
            if images.shape in known:
                return compiled(images)
            known.add(images.shape)
            with _unwarned():
                return compiled(images)

    return call


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without what torch's compiler warns of in itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def has_compiler() -> bool:
    """True where Inductor finds a C++ compiler."""
    return cxx_compiler() is not None
