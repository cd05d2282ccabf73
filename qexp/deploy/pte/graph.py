"""What XNNPACK asks of a program of `torch.export` before it is lowered; each function changes the program's module in place.

ExecuTorch gives XNNPACK a layer in integers where it reads one pattern: the dequantized operand, the dequantized weight, at most
one ReLU or Hardtanh, and a quantizer that nothing else stands before. A layer outside that pattern whose weight is dequantized
comes out with wrong numbers (a linear layer without a quantizer behind it: executorch 1.5.1), so such a weight is written as its
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

CODES = ".codes"  # a layer's weight, `LAYER.codes`, in the program
_ENDS = (-128, 127)  # of INT8, at which XNNPACK's quantizers saturate whatever their own ends are
_LAYERS = ("conv1d", "conv2d", "conv3d", "convolution", "linear")
_FUSED = ("relu", "hardtanh")
_KEEPS_VALUES = ("max_pool2d", "flatten", "view", "reshape", "permute", "transpose", "clone", "contiguous", "dropout")


def operator(node: object) -> str:
    """The name of the operator that a node calls, in any dialect and of its in-place form too; empty of anything else."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return ""
    name = getattr(node.target, "_name", "") or str(getattr(node.target, "name", lambda: "")())  # `aten::relu_`, of both dialects
    return name.partition("::")[2].partition(".")[0].rstrip("_")


def quantizers(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that make codes of values, in order."""
    return [node for node in module.graph.nodes if operator(node) == "quantize_per_tensor"]


def clamp_codes_(module: fx.GraphModule) -> list[fx.Node]:
    """Keep the ends of every grid of fewer than 256 codes by a Hardtanh behind its quantizer, on the same grid with all codes.

    Rounding first gives the same codes, as the ends are among them, and leaves the patterns before the quantizer as they were.
    Returns the nodes that make the codes of each quantizer, in order.
    """
    ops, made = torch.ops.quantized_decomposed, []
    for quantizer in quantizers(module):
        source, scale, zero_point, low, high, dtype = quantizer.args
        assert isinstance(source, fx.Node) and isinstance(scale, float) and isinstance(zero_point, int)
        assert isinstance(low, int) and isinstance(high, int)
        is_narrow = (low, high) != _ENDS and not _is_on_grid(source, (scale, zero_point))
        grid = (scale, zero_point, *_ENDS, dtype)
        readers = list(quantizer.users)
        for node in (quantizer, *readers):
            node.args = (node.args[0], *grid)
        made.append(quantizer)
        if is_narrow:
            with module.graph.inserting_before(quantizer.next):
                values = module.graph.call_function(ops.dequantize_per_tensor.default, (quantizer, *grid))
                ends = ((low - zero_point) * scale, (high - zero_point) * scale)
                clamped = module.graph.call_function(torch.ops.aten.hardtanh.default, (values, *ends))
                made[-1] = module.graph.call_function(ops.quantize_per_tensor.default, (clamped, *grid))
            for reader in readers:
                reader.replace_input_with(quantizer, made[-1])
    module.recompile()
    return made


def match_patterns_(module: fx.GraphModule) -> None:
    """Write clamps as the Hardtanh that a layer may have, and give each reader of codes a dequantizer of its own.

    One that an integer and a float operator share is taken for the integer one's, and the other is then refused when the file
    is loaded (executorch 1.5.1).
    """
    for node in list(module.graph.nodes):
        ends = _clamp(node)
        if ends is not None:
            with module.graph.inserting_before(node):
                clamp = torch.ops.aten.hardtanh.default
                node.replace_all_uses_with(module.graph.call_function(clamp, (node.args[0], *ends)))
            module.graph.erase_node(node)
        elif operator(node).startswith("dequantize_per"):
            for reader in list(node.users)[1:]:
                with module.graph.inserting_before(reader):
                    reader.replace_input_with(node, module.graph.node_copy(node))
    for _, weight, _ in layers_of(module):  # ends of -8 and 7 would be taken for codes of 4 bits that lie packed
        if operator(weight) == "dequantize_per_channel":
            weight.args = (*weight.args[:-3], -127, 127, weight.args[-1])
    module.recompile()


def _clamp(node: fx.Node) -> tuple[float, float] | None:
    """The limits of a ReLU6 or of a clamp by two numbers; None of anything else."""
    if operator(node) == "relu6":
        return 0.0, 6.0
    low, high = (*node.args[1:3], None, None)[:2]
    is_number = isinstance(low, int | float) and isinstance(high, int | float)
    return (float(low), float(high)) if operator(node) == "clamp" and is_number else None  # type: ignore[arg-type]


def _is_on_grid(node: fx.Node, grid: Sequence[object]) -> bool:
    """True where values come from codes of this very grid by way of what moves values alone."""
    while operator(node) in _KEEPS_VALUES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return operator(node) == "dequantize_per_tensor" and node.args[1:3] == tuple(grid[:2])


def layers_of(module: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
    """Each call of a layer whose weight is codes, the node that dequantizes it, and that of the codes."""
    for node in module.graph.nodes:
        if operator(node) in _LAYERS:
            weight = node.args[1]
            if operator(weight).startswith("dequantize_per"):
                yield node, weight, weight.args[0]


def is_integer(layer: fx.Node) -> bool:
    """True where XNNPACK takes a layer in integers: codes at both ends, and one ReLU or Hardtanh at most before the second."""
    if operator(layer) == "conv3d" or operator(layer.args[0]) != "dequantize_per_tensor":
        return False
    readers = list(layer.users)
    if len(readers) == 1 and operator(readers[0]) in _FUSED:
        readers = list(readers[0].users)
    return len(readers) == 1 and operator(readers[0]) == "quantize_per_tensor"


@torch.no_grad()
def keep_float_weights_(module: fx.GraphModule) -> frozenset[str]:
    """Write weights of layers that XNNPACK does not take in integers as values; the names of those that it takes."""
    integer: set[str] = set()
    others: set[str] = set()
    for layer, weight, codes in list(layers_of(module)):
        name = str(codes.target).removesuffix(CODES)
        if is_integer(layer):
            integer.add(name)
            continue
        others.add(name)
        values = f"{name.replace('.', '_')}_values"
        if not hasattr(module, values):
            arguments = fx.map_arg(weight.args, lambda node: _attribute(module, str(node.target)))
            module.register_buffer(values, weight.target(*arguments))  # type: ignore[operator]
        with module.graph.inserting_before(layer):
            layer.replace_input_with(weight, module.graph.get_attr(values))
    module.graph.eliminate_dead_code()
    module.recompile()
    _discard_unread_(module)
    return frozenset(integer - others)


def _attribute(module: nn.Module, path: str) -> torch.Tensor:
    parent, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(parent), name)
    assert isinstance(value, torch.Tensor)
    return value


def _discard_unread_(module: fx.GraphModule) -> None:
    """Without the tensors that nothing reads, which would be written too."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        if path not in read:
            parent, _, name = path.rpartition(".")
            delattr(module.get_submodule(parent), name)


def show_codes_(module: fx.GraphModule, codes: Sequence[fx.Node]) -> None:
    """Give codes behind the logits.

    Args:
        module: of the program.
        codes: nodes that make them, of `clamp_codes_`.
    """
    module.graph.set_codegen(fx.graph.CodeGen())  # results as they are, without torch.export's packing
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = ((output.args[0][0], *codes),)
    module.recompile()
