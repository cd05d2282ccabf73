"""A quantized network as an ONNX file of QuantizeLinear and DequantizeLinear that carries the scales and zero points of qexp.

The file says what qexp simulates, place by place: QuantizeLinear and DequantizeLinear where the network has a `FakeQuantize`,
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

Not bit for bit: ONNX divides by the scale where qexp's default multiplies by 1 / scale, which differs by a code at some exact
ties and practically nowhere else (`arithmetic=divide` is ONNX's); a bias is rounded to a step of the accumulator, by half of one
at most; sums of floats depend on their order, of integers they do not. Of these the biases matter: `load_biases_` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from qexp.base.errors import UserError
from qexp.base.files import write_atomic
from qexp.deploy.activation_codes import CodeTensor, code_nodes
from qexp.deploy.onnx.layers import conv
from qexp.deploy.onnx.node import Call, Constant, Dynamic, Shelf, Value, saturates
from qexp.deploy.onnx.operators import KEEPS, clamps_of, handler_of
from qexp.deploy.onnx.writer import INPUT, Grid, OnnxWriter
from qexp.deploy.weight_codes import WeightCodes
from qexp.nn.fake_quant import FakeQuantize
from qexp.nn.graph import GraphNetwork, evaluating
from qexp.nn.operators import function_name, tensors_of

_BATCH = 3  # images of the example: no dimension of a network is likely to be mistaken for it


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written.

    Args:
        path: of the file. size_bytes: its size. codes: place (of `code_nodes`) -> its codes in the file.
        stored: weight or bias -> its type in the file (`INT8`, `FLOAT`). biases: those stored as codes -> the values of these,
            float32, with which a simulation computes as the file does. notes: what the file does otherwise than asked.
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
    about: Mapping[str, Any] | None = None,
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
        about: for the file's reader, plain values.

    Raises:
        UserError: an operator or a quantizer that the file cannot hold; names module and operator. Nothing is written.
    """
    if network._forward_pre_hooks:
        raise UserError("quant.input", "int or round", allowed="none in an exported network, which takes the images as they are")
    export = _Export(network, Shelf(OnnxWriter(), weights, pack_int4, unsigned))
    with evaluating(network):
        result = export.run(torch.cat([example[:1]] * _BATCH))
    unused = sorted(weights.keys() - export.shelf.stored.keys())
    notes = export.shelf.notes + [f"{name}: no layer of the graph reads it as it is; not written as codes" for name in unused]
    export.shelf.writer.drop_unread("DequantizeLinear")
    model = export.shelf.writer.model(result.name, example.shape[1:], result.shape[1:], about or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda target: target.write_bytes(model.SerializeToString()))
    shelf = export.shelf
    return Exported(
        path, path.stat().st_size, dict(export.codes), dict(shelf.stored), dict(shelf.biases), tuple(dict.fromkeys(notes))
    )


@dataclass(eq=False)
class _Export(fx.Interpreter):
    """Walks the graph: the network runs on the example, and each node is written as it is reached."""

    network: GraphNetwork
    shelf: Shelf
    codes: dict[str, CodeTensor] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)  # by place
    written: dict[fx.Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.network)
        self.extra_traceback = False  # torch.fx would add its own to the message of an error
        self.places = {node: name for name, node in code_nodes(self.network).items()}

    def run(self, example: Tensor) -> Value:
        """Write all nodes; the value of the network."""
        super().run(example)
        output = next(node for node in self.network.graph.nodes if node.op == "output").args[0]
        found = self.written.get(output) if isinstance(output, fx.Node) else None
        if not isinstance(found, Value):
            raise UserError("export", "the network's output", allowed="one tensor of logits")
        return found

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
        reads = any(isinstance(self.written[each], Value | tuple) for each in node.all_input_nodes)
        if not reads or not list(tensors_of(result)):
            return Constant(result.clone()) if isinstance(result, Tensor) else result  # sizes, and what parameters make
        module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.written.__getitem__)
        name = str(node.target) if module is not None else node.name
        what = type(module).__name__ if module is not None else function_name(node)
        call = Call(self.shelf, name, what, module, str(node.target), args, kwargs, result)
        if isinstance(module, FakeQuantize):
            return self._quantize(node, call, module)
        clamped = self._clamped_grid(node, module)
        if clamped is not None:
            if saturates(clamped, *clamps_of(node, module)):
                return args[0]
            args = (self._before(call, clamped), *args[1:])
            call = replace(call, args=args)
        handler = handler_of(node, module)
        if handler is None:
            call.refuse("there is no way to write it")
        if any(tensor.shape[:1] != (_BATCH,) for tensor in tensors_of(result)):
            call.refuse("its first dimension is not that of the images")
        found = handler(call)
        if isinstance(found, Value):
            return found
        grid = _kept_grid(call) if handler in KEEPS and clamped is None else None
        if isinstance(found, tuple):
            return tuple(self._kept(each, name, part, grid) for each, part in zip(found, result, strict=True))
        return self._kept(found, name, result, grid)

    def _kept(self, found: str, name: str, result: Tensor, grid: Grid | None) -> Value:
        """A result; once more on its grid where it consists of values of one."""
        shape = tuple(result.shape)
        return Value(found, shape) if grid is None else self._pair(found, shape, grid, f"{name}.codes")

    def _clamped_grid(self, node: fx.Node, module: nn.Module | None) -> Grid | None:
        """The grid of a ReLU, ReLU6 or Hardtanh that nothing but a quantizer reads, per tensor; None for anything else."""
        reader = next(iter(node.users), None)
        if clamps_of(node, module) is None or len(node.users) != 1 or reader not in self.places:
            return None
        place = self.network.get_submodule(str(reader.target))
        grid = None if place.spec.dynamic else self._grid(place)
        return grid if grid is not None and grid.qparams.axis is None else None

    def _before(self, call: Call, grid: Grid) -> Value:
        """The operand of a clamp on the grid of its result, so that the layer before ends in codes.

        Q(clamp(x)) = Q(clamp(DQ(Q(x)))) to the limits of the type, since Q and the clamp are monotone: what rounds beyond an end
        gets that end's code.
        """
        x = call.activation()
        return x if x.grid is not None else self._pair(x.name, x.shape, grid, f"{call.name}.operand")

    def _grid(self, module: FakeQuantize) -> Grid:
        """The grid of a place, written when first asked for."""
        self._check(module)
        spec, name = module.spec, module.name
        if bool(module.scale.isnan().any()):
            raise RuntimeError(f"fake quantization at {name} was not calibrated: call set_range or set_qparams")
        if name not in self.grids:
            self.grids[name] = self.shelf.writer.grid(name, module.qparams, unsigned=self.shelf.unsigned)
            if spec.arithmetic != "divide":
                self.shelf.notes.append(
                    "values are divided by the scale, where qexp multiplied by its reciprocal: ties may differ"
                )
        return self.grids[name]

    def _check(self, module: FakeQuantize) -> None:
        """Raise UserError for what a file cannot hold."""
        spec, name = module.spec, module.name
        wanted = {"mode": "int", "rounding": "half_even"}
        if spec.dynamic:
            wanted |= {"scheme": "affine", "bits": 8, "granularity": "per_tensor"}
        for key, value in wanted.items():
            if getattr(spec, key) != value:
                where = "DynamicQuantizeLinear" if spec.dynamic else "QuantizeLinear"
                raise UserError(f"{name}.{key}", getattr(spec, key), allowed=f"{value} in {where}")

    def _quantize(self, node: fx.Node, call: Call, module: FakeQuantize) -> Value:
        """QuantizeLinear and DequantizeLinear of a place, after a clamp where its codes are narrower than their type's."""
        if module.spec.dynamic:
            self._check(module)
            return self._quantize_dynamically(node, call)
        grid, x = self._grid(module), call.activation()
        if grid.is_narrow:
            if grid.qparams.axis is not None:
                call.refuse(f"codes of {module.spec.bits} bits, per channel, have no type of their own")
            ends = (grid.qparams.quant_min, grid.qparams.quant_max)
            low, high = (float((end - grid.qparams.zero_point) * grid.qparams.scale) for end in ends)
            x = Value(call.emit("Clip", self._before(call, grid).name, call.number(low), call.number(high)), x.shape)
        place = self.places[node]
        found = self._pair(x.name, x.shape, grid, f"{place}.codes")
        self.codes[place] = CodeTensor(self.shelf.writer.nodes[-1].input[0], grid.offset)
        return found

    def _quantize_dynamically(self, node: fx.Node, call: Call) -> Value:
        """DynamicQuantizeLinear of a place, and DequantizeLinear for readers that are not products of integers."""
        place, x, writer = self.places[node], call.activation(), self.shelf.writer
        found = Dynamic(*writer.quantize_dynamically(x.name, f"{place}.codes"))
        self.codes[place] = CodeTensor(found.codes, 128)
        for user in node.users:
            module = self.network.get_submodule(str(user.target)) if user.op == "call_module" else None
            if handler_of(user, module) is conv:
                name = user.name if module is None else user.target
                self.shelf.notes.append(f"{name}: computed in float, on codes with each batch's range")
        values = writer.node("DequantizeLinear", [found.codes, found.scale, found.zero_point], f"{place}.codes.values")[0]
        return Value(values, x.shape, dynamic=found)

    def _pair(self, value: str, shape: tuple[int, ...], grid: Grid, name: str) -> Value:
        """QuantizeLinear, named, and DequantizeLinear."""
        codes = self.shelf.writer.quantize(value, grid, name)
        return Value(self.shelf.writer.dequantize(codes, grid, f"{name}.values"), shape, grid)


def _kept_grid(call: Call) -> Grid | None:
    """The one grid, per tensor, that all operands of a call are on; None where they are not."""
    operands = call.args[0] if isinstance(call.args[0], list | tuple) else call.args[:1]
    grids = {getattr(each, "grid", None) for each in operands}
    grid = grids.pop() if len(grids) == 1 else None
    return grid if grid is not None and grid.qparams.axis is None else None
