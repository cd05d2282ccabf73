"""A quantized network as a .tflite file of integers that carries the scales and zero points of qexp.

An operator of TFLite has codes at both ends and brings its sums to the grid of its result, where ONNX has floats between
QuantizeLinear and DequantizeLinear and leaves it to a runtime to find integers in that. So each operator is written with the grid
of the activation point behind it, its ReLU fused; what is left float in the network is float in the file, between DEQUANTIZE and
QUANTIZE. Images come as float32 [N, H, W, C] and logits go as float32 [N, classes].

The logits of a network lie on no grid of the plan. A layer that computes them gives INT16 codes, of a step of twice the largest
logit of calibration images over 32767, which DEQUANTIZE makes floats. Rejected: INT8 logits, as
TensorFlow's converter has them, whose step is a hundredth of the largest logit, so that of 1000 classes the first two may tie.

Rejected: `ai-edge-torch` or TensorFlow's converter, which put scales of their own, and a torch.export program through either,
which loses the activation points' names on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qexp.base.errors import UserError
from qexp.base.files import write_atomic
from qexp.base.types import QParams
from qexp.deploy.activation_codes import code_nodes
from qexp.deploy.graph_call import Constant
from qexp.deploy.graph_nodes import called_module, output_of, place_of, quantizer_at
from qexp.deploy.int8_files import check_point
from qexp.deploy.onnx.batch import BATCH, batch_axis, made_constant, run_of_fewer
from qexp.deploy.onnx.operators import clamps_of
from qexp.deploy.tflite.layers import conv
from qexp.deploy.tflite.moves import left_to_convs, pad
from qexp.deploy.tflite.node import Target, TfliteContext, TfliteNode, Value, file_shape, wide_grid
from qexp.deploy.tflite.operators import LAYERS, MOVES, handler_of
from qexp.deploy.tflite.writer import INT8, TFLITE, CodeGrid, TfliteWriter, activation_grid
from qexp.deploy.weight_codes import WeightCodes
from qexp.nn.fake_quantize import FakeQuantize
from qexp.nn.graph import GraphNetwork, evaluating
from qexp.nn.operators import function_name, tensors_of


@dataclass(frozen=True, eq=False)
class ExportedTflite:
    """What was written.

    Args:
        path: of the file.
        size_bytes: its size.
        stored: weight or bias -> its type in the file (`INT8`, `FLOAT`).
        notes: what the file does differently from the settings.
    """

    path: Path
    size_bytes: int
    stored: Mapping[str, str]
    notes: tuple[str, ...]


@torch.no_grad()
def export_tflite(
    network: GraphNetwork,
    example: Tensor,
    weights: Mapping[str, WeightCodes],
    path: Path,
    *,
    largest_logit: float = 1.0,
    integer_io: bool = False,
    about: Mapping[str, object] | None = None,
) -> ExportedTflite:
    """Write a network: float32 [N, H, W, C] `images` -> float32 [N, classes] `logits`, N any.

    Args:
        network: of `qexp.nn.fake_quant.insert`, calibrated, in eval mode; its weights hold the values of their codes.
        example: [1 or more, C, H, W] images of the size to export.
        weights: state-dict name -> codes; other weights are written as float32.
        path: of the file, replaced at once when it is complete.
        largest_logit: of the calibration images, absolute; logits of more than twice that saturate.
        integer_io: INT8 `images`, on the grid that the network has for them, and INT8 `logits`, which saturate at 1.25 times the
            largest.
        about: for the file's reader, plain values.

    Raises:
        UserError: an operator or a grid that the file cannot hold; names module and operator. Nothing is written.
    """
    if network._forward_pre_hooks:
        raise UserError("quant.input", "int or round", allowed="none in an exported network, which takes the images as they are")
    context = TfliteContext(TfliteWriter(), weights)
    largest = max(largest_logit, 1e-30)
    logits = wide_grid(torch.tensor(largest * 2 / 32767)) if not integer_io else _narrow_logits(largest)
    export = _Export(network, context, logits, integer_io)
    with evaluating(network):
        source, result = export.write_nodes(torch.cat([example[:1]] * BATCH))
    content = context.writer.file(source.tensor, result.tensor, about or {}, export.codes)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(target: Path) -> None:
        target.write_bytes(content)

    write_atomic(path, write)
    return ExportedTflite(path, len(content), dict(context.stored), tuple(dict.fromkeys(context.notes)))


def _narrow_logits(largest: float) -> CodeGrid:
    """INT8 codes of logits."""
    return CodeGrid(QParams(torch.tensor(largest * 1.25 / 127), torch.tensor(0.0), -128, 127), INT8)


@dataclass(eq=False)
class _Export(fx.Interpreter):
    """Walks the graph: the network runs on the example, and each node is written as it is reached."""

    network: GraphNetwork
    context: TfliteContext
    logits: CodeGrid
    integer_io: bool
    codes: dict[str, tuple[str, int, str | list[int]]] = field(default_factory=dict)
    grids: dict[str, CodeGrid] = field(default_factory=dict)  # by activation point
    written: dict[fx.Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.network)
        self.extra_traceback = False  # torch.fx would add its own to the message of an error
        self.points = {node: name for name, node in code_nodes(self.network).items()}
        self.returned = output_of(self.network)

    def write_nodes(self, example: Tensor) -> tuple[Value, Value]:
        """Run the network and write all nodes; the images and what it returns, as float values in the file."""
        self.fewer, self.settled = run_of_fewer(self.network, example)
        self.run(example)
        value = None if self.returned is None else self.written.get(self.returned)
        if not isinstance(value, Value) or len(value.shape) != 2:
            raise UserError("export", "the network's output", allowed="one tensor of logits, a row for each image")
        source = next(self.written[node] for node in self.network.graph.nodes if node.op == "placeholder")
        value = self.context.plain(value)
        if self.integer_io and value.grid is None:
            raise UserError("export.integer_io", True, allowed="a network whose last layer is quantized, weights and operand")
        return source, value if self.integer_io else self.context.floats(value)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, then write it."""
        result = super().run_node(n)
        if n.op == "placeholder":
            grid, last = self._images(n), result.dim() == 4
            number = self.context.writer.value("images", file_shape(result.shape, last), grid)
            self.written[n] = Value(number, tuple(result.shape), grid, last)
        elif n.op == "get_attr":
            self.written[n] = Constant(result.clone(), str(n.target))
        elif n.op != "output":
            self.written[n] = self._write(n, result)
        return result

    def _write(self, node: fx.Node, result: Any) -> Any:
        """The value, constant or number that a call gives."""
        if node in self.settled:
            return made_constant(result, self.settled[node]) if isinstance(result, Tensor) else result  # also sizes
        module = called_module(self.network, node)
        args: tuple[Any, ...] = tuple(fx.map_arg(argument, self.written.__getitem__) for argument in node.args)
        kwargs = {key: fx.map_arg(argument, self.written.__getitem__) for key, argument in node.kwargs.items()}
        name = str(node.target) if module is not None else node.name
        operator = type(module).__name__ if module is not None else function_name(node)
        call = TfliteNode(
            name, operator, module, str(node.target), args, kwargs, result, place_of(node),
            context=self.context, target=self._target(node),
        )  # fmt: skip
        if isinstance(module, FakeQuantize):
            return self._quantize(node, call, module)
        handler = handler_of(node, module)
        if handler is None:
            call.refuse("there is no way to write it")
        fewer = self.fewer[node] if isinstance(result, list | tuple) else [self.fewer[node]]
        for tensor, other in zip(tensors_of(result), fewer, strict=True):
            if tensor.shape[:1] != (BATCH,) or batch_axis(tuple(tensor.shape), other) != 0:
                call.refuse("images are not its result's first dimension alone")
        return (left_to_convs(call) if handler is pad and self._is_for_convs(node) else None) or handler(call)

    def _images(self, source: fx.Node) -> CodeGrid | None:
        """The grid of the images; None of float32."""
        if not self.integer_io:
            return None
        quantizers = [quantizer_at(self.network, user) for user in source.users]
        grids = [self._grid(one) for one in quantizers if one is not None]
        if len(grids) < len(quantizers) or not grids or any(grid is not grids[0] for grid in grids) or grids[0].dtype != INT8:
            raise UserError("export.integer_io", True, allowed="a plan that gives the images codes of at most 8 bits")
        return grids[0]

    def _is_for_convs(self, node: fx.Node) -> bool:
        """True where all that reads a value are convolutions, or paddings before such."""
        readers = {user: handler_of(user, called_module(self.network, user)) for user in node.users if user.args[:1] == (node,)}
        padded = (handler is conv or (handler is pad and self._is_for_convs(user)) for user, handler in readers.items())
        return len(readers) == len(node.users) and all(padded)

    def _target(self, node: fx.Node) -> Target | None:
        """The grid that a call's result goes to, by way of one clamp and of what moves values; None where there is none."""
        clamp, layer = None, handler_of(node, called_module(self.network, node)) in LAYERS
        while len(node.users) == 1:
            reader = next(iter(node.users))
            if reader.op == "output":
                return Target(self.logits, clamp) if layer and clamp is None else None
            quantizer = quantizer_at(self.network, reader)
            if quantizer is not None:
                return Target(self._grid(quantizer), clamp)
            module = called_module(self.network, reader)
            handler = handler_of(reader, module) if reader.op.startswith("call") else None
            ends = None if handler is None else clamps_of(reader, module)
            if ends is not None and clamp is None:
                clamp = ends
            elif handler not in MOVES:
                return None
            node = reader
        return None

    def _grid(self, module: FakeQuantize) -> CodeGrid:
        """The grid of an activation point.

        Raises:
            UserError: what a file cannot hold.
        """
        name = module.name
        check_point(module, TFLITE)
        if name not in self.grids:
            self.grids[name] = activation_grid(name, module.qparams)
        return self.grids[name]

    def _quantize(self, node: fx.Node, call: TfliteNode, module: FakeQuantize) -> Value:
        """An activation point: nothing behind an operator that gave its codes, QUANTIZE of anything else."""
        grid, x = self._grid(module), call.activation()
        if not grid.same(x.grid) or node.all_input_nodes[0].op == "placeholder":
            x = self.context.limited(self.context.on_grid(x, grid))
        value = Value(x.tensor, x.shape, grid, x.last, (), x.pixels)
        layout = list(value.pixels) if value.pixels is not None else "last" if value.last else "first"
        self.codes[self.points[node]] = (self.context.name_of(value), grid.offset, layout)
        return value
