"""A quantized network as an ONNX file of QuantizeLinear and DequantizeLinear that carries the scales and zero points of qexp.

The file says what qexp simulates, point by point: QuantizeLinear and DequantizeLinear where the network has a `FakeQuantize`,
integer codes and DequantizeLinear for the weights, biases as int32 codes of input scale times weight scale. ONNX Runtime and
OpenVINO find integer kernels in that. What only moves codes (max pooling, reshaping, a ReLU of codes) gets the pair again behind
it, with the same scale, which is exact and keeps the integers going. A ReLU or ReLU6 before a QuantizeLinear whose codes end
where it clamps is left out: saturation does the same, to the last bit. Where they do not, the value is quantized before
the clamp too, which changes no code; likewise where codes are narrower than their type's, as 4 bits in UINT8, and have to be
clamped. Activations are UINT8 beside INT8 weights, the same grids with codes and zero points moved by 128: ONNX Runtime on x86
computes with that pair, turns INT8 activations into it on loading, and where a value has several readers fails to, leaving
their convolutions in float. TensorRT reads INT8 alone, with zero points of 0: `unsigned=False` and a symmetric scheme.

Rejected: `torch.onnx.export` of the network with its fake quantization turned into something exportable. Its TorchScript half,
which knew `fake_quantize_*`, is being retired; its successor (`dynamo=True`) has no translation for fake quantization or takes it
apart into Mul, Round and Add (pytorch/pytorch #167063, #127167), so that custom operators and onnxscript, another dependency
that follows torch's versions, would be needed to get back what `qexp.nn.graph` holds already: a graph of a few dozen kinds of
operators, with the names that a plan uses. Written node by node, each choice that decides whether a runtime finds its integer
kernel stands here, with a test.

A range that is each batch's own is DynamicQuantizeLinear, and a linear layer that reads it MatMulInteger; convolutions of such
codes are computed in float, since runtimes have no fast kernel for them, and are named. It takes UINT8 and a grid with a zero
point, and computes both in float32, where qexp takes float64: a scale may differ in its last bit, a zero point by one at a tie.

Small floats (`minifloat` of 8 bits) are QuantizeLinear to FLOAT8E4M3FN or FLOAT8E5M2, saturating where qexp does, and
DequantizeLinear; runtimes compute with them in float32, so biases stay float and nothing is fused.

Not bit for bit: ONNX divides by the scale where qexp's default multiplies by 1 / scale, which differs by a code at some exact
ties and practically nowhere else (`arithmetic=divide` is ONNX's); a bias is rounded to a step of the accumulator, by half of one
at most; sums of floats depend on their order, of integers they do not. Of these the biases matter: `load_values_` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qexp.base.errors import UserError
from qexp.base.files import write_atomic
from qexp.base.text import Note
from qexp.deploy.activation_codes import CodeTensor, code_nodes
from qexp.deploy.graph_call import Constant
from qexp.deploy.graph_nodes import called_module, output_of, place_of, quantizer_at
from qexp.deploy.in_float import InFloat
from qexp.deploy.onnx.batch import BATCH, batch_axis, goes_with_images, made_constant, reshape_sizes, run_of_fewer
from qexp.deploy.onnx.layers import conv
from qexp.deploy.onnx.node import Dynamic, ExportContext, OnnxNode, Value, clamps_nothing, kept_grid
from qexp.deploy.onnx.operators import KEEPS_VALUES, clamps_of, handler_of
from qexp.deploy.onnx.points import check_point, quantize_to_float8
from qexp.deploy.onnx.shapes import left_to_convs, pad, reshape
from qexp.deploy.onnx.writer import INPUT, Grid, OnnxWriter
from qexp.deploy.weight_codes import WeightCodes
from qexp.nn.fake_quantize import FakeQuantize, FloatFakeQuantize
from qexp.nn.graph import GraphNetwork, evaluating
from qexp.nn.layer_calls import products
from qexp.nn.operators import function_name, tensors_of


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written.

    Args:
        path: of the file.
        size_bytes: its size.
        codes: activation point (of `code_nodes`) -> its codes in the file.
        stored: weight or bias -> its type in the file (`INT8`, `FLOAT`).
        biases: those stored as codes -> the values of these, float32, with which a simulation computes as the file does.
        notes: what the file does differently from the settings.
    """

    path: Path
    size_bytes: int
    codes: Mapping[str, CodeTensor]
    stored: Mapping[str, str]
    biases: Mapping[str, Tensor]
    notes: tuple[str, ...]


@torch.no_grad()
def export_qdq(
    network: GraphNetwork,
    example: Tensor,
    weights: Mapping[str, WeightCodes],
    path: Path,
    *,
    pack_int4: bool = False,
    unsigned: bool = True,
    in_float: Mapping[str, InFloat] | None = None,
    about: Mapping[str, object] | None = None,
) -> Exported:
    """Write a quantized network: float32 [N, C, H, W] `images` -> float32 [N, classes] `logits`, N any.

    Args:
        network: of `qexp.nn.fake_quant.insert`, calibrated, in eval mode; its weights hold the values of their codes.
        example: [1 or more, C, H, W] images of the size to export.
        weights: state-dict name -> codes; other weights are written as float32.
        path: of the file, replaced at once when it is complete.
        pack_int4: weights of 4 bits and less as INT4, two to a byte, which ONNX Runtime's CPU kernels convert to float to compute
            with; else as INT8.
        unsigned: activations as UINT8 (16 bits: UINT16); else as INT8, but for a scheme without negative codes.
        in_float: state-dict name -> numbers or codes of weights that runtimes compute with in float.
        about: for the file's reader, plain values.

    Raises:
        UserError: an operator or a quantizer that the file cannot hold; names module and operator. Nothing is written.
    """
    if network._forward_pre_hooks:
        raise UserError("quant.input", "int or round", allowed="none in an exported network, which takes the images as they are")
    context = ExportContext(OnnxWriter(), weights, pack_int4, unsigned, in_float or {})
    export = _Export(network, context)
    with evaluating(network):
        result = export.write_nodes(torch.cat([example[:1]] * BATCH))
    unused = sorted({*weights, *context.in_float} - context.stored.keys())
    notes = context.notes + [Note(name, "no layer of the graph reads it as it is; not written as codes") for name in unused]
    context.writer.drop_unread("DequantizeLinear", result.name)
    model = context.writer.model(result.name, example.shape[1:], result.shape[1:], about or {})
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(target: Path) -> None:
        target.write_bytes(model.SerializeToString())

    write_atomic(path, write)
    return Exported(
        path=path,
        size_bytes=path.stat().st_size,
        codes=dict(export.codes),
        stored=dict(context.stored),
        biases=dict(context.biases),
        notes=tuple(dict.fromkeys(notes)),
    )


@dataclass(eq=False)
class _Export(fx.Interpreter):
    """Walks the graph: the network runs on the example, and each node is written as it is reached."""

    network: GraphNetwork
    context: ExportContext
    codes: dict[str, CodeTensor] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)  # by activation point
    written: dict[fx.Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.network)
        self.extra_traceback = False  # torch.fx would add its own to the message of an error
        self.points = {node: name for name, node in code_nodes(self.network).items()}
        self.names = products(self.network)

    def write_nodes(self, example: Tensor) -> Value:
        """Run the network and write all nodes; what it returns, as a value in the file."""
        self.fewer, self.settled = run_of_fewer(self.network, example)
        self.run(example)
        output = output_of(self.network)
        value = None if output is None else self.written.get(output)
        if output is None or not isinstance(value, Value) or batch_axis(value.shape, self.fewer[output]) != 0:
            raise UserError("export", "the network's output", allowed="one tensor of logits")
        if value.shape[0] != BATCH:
            raise UserError("export", f"the network's output has {value.shape[0]} rows of {BATCH} images", allowed="one for each")
        return value

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, then write it."""
        result = super().run_node(n)
        if n.op == "placeholder":
            self.written[n] = Value(INPUT, tuple(result.shape))
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
        name = self.names.get(node, str(node.target) if module is not None else node.name)
        operator = type(module).__name__ if module is not None else function_name(node)
        source, where = node.all_input_nodes[0], place_of(node)
        sizes = reshape_sizes(result, self.fewer[node], self.written[source], self.fewer[source])
        counts = batch_axis(self.written[source].shape, self.fewer[source]) if isinstance(self.written[source], Value) else None
        onnx_node = OnnxNode(
            name, operator, module, str(node.target), args, kwargs, result, where, sizes, counts, context=self.context
        )
        if isinstance(module, FakeQuantize):
            return self._quantize(node, onnx_node, module)
        clamp = clamps_of(node, module)
        clamped = None if clamp is None else self._read_grid(node)
        if clamp is not None and clamped is not None:
            if clamps_nothing(clamped, *clamp):
                return args[0]
            args = (self._before(onnx_node, clamped), *args[1:])
            onnx_node = replace(onnx_node, args=args)
        handler = handler_of(node, module)
        if handler is None:
            onnx_node.refuse("there is no way to write it")
        for operand in node.all_input_nodes if handler is not reshape else ():
            settled = operand in self.settled
            if settled and goes_with_images(self.written[operand], self.env[operand], self.settled[operand]):
                onnx_node.refuse(f"it takes {operand.name}, which is another for another number of images")
        tensors, fewer = list(tensors_of(result)), self.fewer[node] if isinstance(result, list | tuple) else [self.fewer[node]]
        if len(tensors) != len(fewer) or None in map(batch_axis, (tuple(tensor.shape) for tensor in tensors), fewer):
            onnx_node.refuse("no single dimension of its result is that of the images")
        written = (left_to_convs(onnx_node) if handler is pad and self._is_for_convs(node) else None) or handler(onnx_node)
        if isinstance(written, Value):
            return written
        grid = kept_grid(onnx_node) if handler in KEEPS_VALUES and clamped is None else None
        if isinstance(written, tuple):
            return tuple(self._kept(part, name, value, grid) for part, value in zip(written, result, strict=True))
        return self._kept(written, name, result, grid)

    def _is_for_convs(self, node: fx.Node) -> bool:
        """True where all that reads a value are convolutions, or paddings before such; conv refuses other paddings than zeros."""
        readers = {user: handler_of(user, called_module(self.network, user)) for user in node.users if user.args[:1] == (node,)}
        padded = (handler is conv or (handler is pad and self._is_for_convs(user)) for user, handler in readers.items())
        return len(readers) == len(node.users) and all(padded)

    def _kept(self, tensor_name: str, name: str, result: Tensor, grid: Grid | None) -> Value:
        """A result; once more on its grid where it consists of values of one."""
        shape = tuple(result.shape)
        return Value(tensor_name, shape) if grid is None else self._pair(tensor_name, shape, grid, f"{name}.codes")

    def _read_grid(self, node: fx.Node) -> Grid | None:
        """The grid of the quantizer that alone reads a node's value, per tensor; None where there is no such quantizer."""
        reader = next(iter(node.users), None)
        quantizer = None if reader is None else quantizer_at(self.network, reader)
        if len(node.users) != 1 or quantizer is None or isinstance(quantizer, FloatFakeQuantize):
            return None
        grid = None if quantizer.spec.dynamic else self._grid(quantizer)
        return grid if grid is not None and grid.qparams.axis is None else None

    def _before(self, onnx_node: OnnxNode, grid: Grid) -> Value:
        """The operand of a clamp on the grid of its result, so that the layer before ends in codes.

        Q(clamp(x)) = Q(clamp(DQ(Q(x)))) to the type's limits: both are monotone, and what rounds beyond an end gets its code.
        """
        x = onnx_node.activation()
        return x if x.grid is not None else self._pair(x.name, x.shape, grid, f"{onnx_node.name}.operand")

    def _grid(self, module: FakeQuantize) -> Grid:
        """The grid of an activation point, written at its first use."""
        check_point(module)
        spec, name = module.spec, module.name
        if bool(module.scale.isnan().any()):
            raise RuntimeError(f"fake quantization at {name} was not calibrated: call set_range or set_qparams")
        if name not in self.grids:
            self.grids[name] = self.context.writer.grid(name, module.qparams, unsigned=self.context.unsigned)
            if spec.arithmetic != "divide":
                self.context.notes.append(
                    "values are divided by the scale, where qexp multiplied by its reciprocal: ties may differ"
                )
        return self.grids[name]

    def _quantize(self, node: fx.Node, onnx_node: OnnxNode, module: FakeQuantize) -> Value:
        """QuantizeLinear and DequantizeLinear of an activation point, after a clamp where its codes do not fill their type."""
        if isinstance(module, FloatFakeQuantize):
            readers = (handler_of(user, called_module(self.network, user)) for user in node.users)
            return quantize_to_float8(onnx_node, module, self.points[node], readers)
        if module.spec.dynamic:
            check_point(module)
            return self._quantize_dynamically(node, onnx_node)
        grid, x = self._grid(module), onnx_node.activation()
        if grid.is_narrow:
            if grid.qparams.axis is not None:
                onnx_node.refuse(f"codes of {module.spec.bits} bits, per channel, have no type of their own")
            ends = (grid.qparams.quant_min, grid.qparams.quant_max)
            low, high = (float((end - grid.qparams.zero_point) * grid.qparams.scale) for end in ends)
            operand = self._before(onnx_node, grid).name
            x = Value(onnx_node.emit("Clip", operand, onnx_node.number(low), onnx_node.number(high)), x.shape)
        point = self.points[node]
        value = self._pair(x.name, x.shape, grid, f"{point}.codes")
        self.codes[point] = CodeTensor(self.context.writer.nodes[-1].input[0], grid.offset)
        return value

    def _quantize_dynamically(self, node: fx.Node, onnx_node: OnnxNode) -> Value:
        """DynamicQuantizeLinear of an activation point, and DequantizeLinear for readers that are no products of integers."""
        point, x, writer = self.points[node], onnx_node.activation(), self.context.writer
        dynamic = Dynamic(*writer.quantize_dynamically(x.name, f"{point}.codes"))
        self.codes[point] = CodeTensor(dynamic.codes, 128)
        for user in node.users:
            module = called_module(self.network, user)
            if handler_of(user, module) is conv:
                name = user.name if module is None else user.target
                self.context.notes.append(Note(str(name), "computed in float, on codes with each batch's range"))
        values = writer.node("DequantizeLinear", [dynamic.codes, dynamic.scale, dynamic.zero_point], f"{point}.codes.values")[0]
        return Value(values, x.shape, dynamic=dynamic)

    def _pair(self, value: str, shape: tuple[int, ...], grid: Grid, name: str) -> Value:
        """QuantizeLinear, named, and DequantizeLinear."""
        codes = self.context.writer.quantize(value, grid, name)
        return Value(self.context.writer.dequantize(codes, grid, f"{name}.values"), shape, grid)
