"""The activation points of a network: which of its values an integer runtime holds as codes, and which of them share a scale.

*Everywhere*, as ONNX Runtime, OpenVINO, TensorRT and torch's own flow run a quantized network: a value that a convolution, linear
layer, matrix product, add, multiply, concatenation or average reads is quantized once, where it is made, after everything that is
computed on the accumulator (batch norm, activation function). So conv+BN+ReLU is one point, after the ReLU; conv+BN before a
residual add is one, before the add; the add's result after its ReLU is one. Each operand of an add or a multiply has a scale of
its own, as these requantize. What a concatenation joins shares one scale, since codes are copied there; so does what max pooling,
reshaping, padding with zeros and a ReLU of codes give back. The logits stay float.

*Layers only*, as papers on quantization-aware training count, and as ONNX Runtime's DynamicQuantizeLinear does with each batch's
range: a value is quantized where a convolution, linear layer or matrix product reads it; adds, concatenations and averages stay
float.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from qexp.base.types import ActivationInfo
from qexp.nn.channel_axis import channel_axis
from qexp.nn.graph import Traced
from qexp.nn.operators import INTEGER, MATRIX, POSITIVE, function_name, operator_name

_FLOAT_CHAIN = ("norm", "relu", "other")  # computed on the accumulator of the operator before
_LAYERS = ("conv", "linear")
# Operators whose result is memory of its own, so that it may be overwritten where nothing else reads it.
_FRESH = (*INTEGER, *_FLOAT_CHAIN)


@dataclass(frozen=True)
class ActivationPoint:
    """One tensor of codes, or several with one scale.

    Args:
        info: what a plan says of it.
        nodes: of the graph, each of whose values is quantized, in order of execution.
        users: which readers of the value get the codes; None all.
        overwritable: of each node: its memory holds nothing else that is read later.
    """

    info: ActivationInfo
    nodes: tuple[fx.Node, ...]
    users: frozenset[fx.Node] | None
    overwritable: tuple[bool, ...]


def find_activation_points(traced: Traced, *, layers_only: bool = False) -> tuple[ActivationPoint, ...]:
    """The activation points in order of execution; see the module's text.

    Args:
        traced: of `qexp.nn.graph.trace`.
        layers_only: quantize only what layers and matrix products read.
    """
    graph = _Graph(traced)
    groups, shared = graph.at_layers() if layers_only else graph.everywhere()
    taken = {node for nodes in groups.values() for node in nodes}
    points = []
    for key, nodes in groups.items():
        users = frozenset(graph.readers[key]) if layers_only else None
        name = traced.names[shared.get(key, nodes[0])]
        info = graph.describe(name, nodes, graph.readers[key], taken, concat=key in shared)
        points.append(ActivationPoint(info, tuple(nodes), users, tuple(graph.overwritable(node, users) for node in nodes)))
    return tuple(points)


def activations(traced: Traced, *, layers_only: bool = False) -> tuple[ActivationInfo, ...]:
    """The inventory of activations that a plan is made from: every activation point, and what is none.

    Listed as not entered: the products inside recurrent modules, and inside attention that is not taken apart
    (`qexp.nn.attention`), whose inputs are points. Listed as not executed:
    conv and linear layers that the forward never calls (auxiliary heads).

    Args:
        traced: of `qexp.nn.graph.trace`.
        layers_only: as for `find_activation_points`.
    """
    infos = [point.info for point in find_activation_points(traced, layers_only=layers_only)]
    calls = [node for node in traced.graph.nodes if node in traced.values and not traced.values[node].constant]
    for order, node in enumerate(calls):
        if traced.kind(node) == "attention":
            name, kind = f"{traced.names[node]}.*", operator_name(node, traced.module_of(node))
            layers = tuple(_weights_inside(traced, node))
            infos.append(ActivationInfo(name=name, operator=kind, layers=layers, order=order, entered=False))
    targets = [str(node.target) for node in traced.graph.nodes if node.op in ("call_module", "get_attr")]
    for path, module in traced.root.named_modules():
        used = any(target == path or target.startswith(f"{path}.") or path.startswith(f"{target}.") for target in targets)
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not used:
            layers = (f"{path}.weight",)
            kinds = ("conv" if isinstance(module, nn.modules.conv._ConvNd) else "linear",)
            infos.append(ActivationInfo(name=path, consumers=(path,), kinds=kinds, layers=layers, order=-1, executed=False))
    return tuple(infos)


class _Graph:
    """The kinds of a graph's nodes, and the two ways to find its activation points."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.nodes = [node for node in traced.graph.nodes if node in traced.values and not traced.values[node].constant]
        self.kinds = {node: traced.kind(node) for node in self.nodes}
        self.operands = {node: traced.operands(node) for node in self.nodes}
        self.position = {node: number for number, node in enumerate(traced.graph.nodes)}
        self.readers: dict[fx.Node, list[fx.Node]] = {}

    def at_layers(self) -> tuple[dict[fx.Node, list[fx.Node]], dict[fx.Node, fx.Node]]:
        """Every value that a matrix product reads."""
        for node in self.nodes:
            if self.kinds[node] in MATRIX:
                for operand in self.operands[node]:
                    self.readers.setdefault(operand, []).append(node)
        return {node: [node] for node in sorted(self.readers, key=self.position.__getitem__)}, {}

    def everywhere(self) -> tuple[dict[fx.Node, list[fx.Node]], dict[fx.Node, fx.Node]]:
        """Groups of nodes that share a scale, by the first of each, and of those that a concatenation joins its node."""
        needed = self._needed()
        parent = {node: node for node in self.nodes}

        def find(node: fx.Node) -> fx.Node:
            while parent[node] is not node:
                node = parent[node]
            return node

        def unite(nodes: list[fx.Node]) -> None:
            first, *others = sorted({find(node) for node in nodes}, key=self.position.__getitem__)
            parent.update(dict.fromkeys(others, first))

        passing: set[fx.Node] = set()  # nodes whose value is codes that another node made
        joins = []  # concatenations of codes
        for node in self.nodes:
            kind, operands = self.kinds[node], self.operands[node]
            if kind == "concat" and len(operands) == sum(value in self.traced.values for value in node.all_input_nodes):
                unite([node, *operands])
                joins.append(node)
                passing.add(node)
            elif node in needed and (kind == "keep" or (kind == "relu" and operands[0] in needed)):
                unite([node, operands[0]])
                passing.add(node)
        for node in self.nodes:
            if self.kinds[node] in INTEGER:
                for operand in self.operands[node]:
                    readers = self.readers.setdefault(find(operand), [])
                    readers += [node] if node not in readers else []
        groups: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            if node in needed and node not in passing:
                groups.setdefault(find(node), []).append(node)
        shared: dict[fx.Node, fx.Node] = {}
        for join in joins:
            if len(groups.get(find(join), ())) > 1:
                shared.setdefault(find(join), join)
        return groups, shared

    def _needed(self) -> set[fx.Node]:
        """Values that integer operators read, followed back to where they are made."""
        needed: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if self.kinds[node] in INTEGER or (self.kinds[node] == "keep" and node in needed):
                needed.update(self.operands[node])
        return needed

    def describe(
        self, name: str, nodes: list[fx.Node], readers: list[fx.Node], taken: set[fx.Node], *, concat: bool
    ) -> ActivationInfo:
        """What a plan says of the values of these nodes."""
        traced = self.traced
        chain = self._chain(nodes[0], taken)
        shape = traced.values[nodes[0]].shape
        assert shape is not None, f"{name}: quantized where it is a tuple"
        norm = next((node for node in reversed(chain) if not self._clips(node)), chain[0])
        batch_norm = isinstance(traced.module_of(norm), nn.modules.batchnorm._BatchNorm)
        operators = [operator_name(node, traced.module_of(node)) for node in chain]
        return ActivationInfo(
            name=name,
            producers=tuple(traced.names[node] for node in nodes),
            operator="concat" if concat else "+".join(operator for operator in operators if operator != "keep"),
            consumers=tuple(traced.names[reader] for reader in readers),
            kinds=tuple(sorted({self.kinds[reader] for reader in readers})),
            layers=tuple(layer for reader in readers for layer in self._weights(reader)),
            shape=shape[1:],
            channel_axis=channel_axis(traced, nodes, readers, taken),
            non_negative=all(self._non_negative(node) for node in nodes),
            norm=str(norm.target) if batch_norm and not concat else None,
            order=self.position[nodes[0]],
        )

    def _chain(self, node: fx.Node, taken: set[fx.Node]) -> list[fx.Node]:
        """The operators that make a value in one step of the runtime: the first, then what runs on its accumulator."""
        chain = [node]
        while self.kinds[chain[0]] in (*_FLOAT_CHAIN, "keep") and len(self.operands[chain[0]]) == 1:
            before = self.operands[chain[0]][0]
            if before in taken or self.kinds[before] not in (*INTEGER, *_FLOAT_CHAIN, "keep"):
                break
            chain.insert(0, before)
        return chain

    def _clips(self, node: fx.Node) -> bool:
        """True for ReLU, ReLU6 and what passes values on."""
        return self.kinds[node] in ("relu", "keep") or operator_name(node, self.traced.module_of(node)) == "relu6"

    def _non_negative(self, node: fx.Node) -> bool:
        """True where the operator's result has no value below zero, by what it computes or because its operands have none."""
        name = operator_name(node, self.traced.module_of(node))
        if name in POSITIVE:
            return True
        adds = name == "add" and "sub" not in function_name(node)
        closed = adds or name in ("keep", "concat", "multiply") or (name == "pool" and not _interpolates(self.traced, node))
        operands = self.operands[node]
        return closed and self.kinds[node] == name and bool(operands) and all(map(self._non_negative, operands))

    def _weights(self, reader: fx.Node) -> list[str]:
        """State-dict names of the weights that a layer multiplies a value with."""
        if reader.op == "call_module" and self.kinds[reader] in _LAYERS:
            return [f"{reader.target}.weight"]
        if self.kinds[reader] in (*_LAYERS, "matmul"):
            return _matrices(self.traced, reader)
        return []

    def overwritable(self, node: fx.Node, users: frozenset[fx.Node] | None) -> bool:
        """True where the memory of a value is read by nobody but those that get it quantized."""
        values = self.traced.values
        storages = values[node].storages
        if self.kinds[node] not in _FRESH or storages & self.traced.owned:
            return False
        if users is not None and not set(node.users) <= users:
            return False
        for other, value in values.items():
            if other is node or not value.storages & storages or self.position[other] > self.position[node]:
                continue
            read_later = any(self.position[user] > self.position[node] for user in other.users)
            if read_later or other.op in ("placeholder", "get_attr"):
                return False
        return True


def _weights_inside(traced: Traced, node: fx.Node) -> list[str]:
    """State-dict names of the matrices that an operator which is not entered multiplies with."""
    module = traced.module_of(node)
    if module is None:
        return _matrices(traced, node)
    return [f"{node.target}.{name}" for name, value in module.named_parameters() if value.dim() > 1]


def _interpolates(traced: Traced, node: fx.Node) -> bool:
    """True for resizing, which overshoots where it is bicubic."""
    return isinstance(traced.module_of(node), nn.Upsample) or function_name(node) == "interpolate"


def _matrices(traced: Traced, node: fx.Node) -> list[str]:
    """Names of the parameters of two dimensions and more that a node reads, directly or computed from them alone."""
    matrices, waiting = [], list(node.all_input_nodes)
    while waiting:
        source = waiting.pop(0)
        value = traced.values.get(source)
        if value is None or not value.constant:
            continue
        if source.op != "get_attr":
            waiting += source.all_input_nodes
        elif len(value.shape or ()) > 1:
            matrices.append(str(source.target))
    return matrices
