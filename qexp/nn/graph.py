"""A network as a graph of operators that computes the same, with the same state-dict names, into which modules can be inserted.

`torch.fx` runs the network's own forward on symbols and writes down what it calls; modules of torch.nn are nodes, everything
else is entered. The graph is checked against the network on an example, since what a forward decides by Python values is decided
once, at tracing: eval mode's branches.

Rejected: `torch.export`, whose graph holds aten operators on lifted parameters, so that modules, their names and what is shared
with the network are lost; hooks, which cannot see adds and concatenations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from qexp.base.errors import UserError
from qexp.nn.attention import enter_attention
from qexp.nn.operators import function_name, operator_of, tensors_of
from qexp.nn.tracing import fx_graph


@dataclass(frozen=True)
class Insertion:
    """A module to call on a node's value.

    Args:
        node: whose value.
        name: dotted path of the module in the network.
        module: may serve several nodes.
        users: which readers get `module(value)` instead; None all.
        options: further arguments of the call.
    """

    node: fx.Node
    name: str
    module: nn.Module
    users: frozenset[fx.Node] | None = None
    options: Mapping[str, bool] = field(default_factory=dict)


class GraphNetwork(fx.GraphModule):
    """A graph over modules that it shares with the network it was traced from, all of them, those that never run included.

    torch's own GraphModule drops modules that the graph does not call, from the state dict and at every `deepcopy`.

    Args:
        root: the modules, parameters and buffers to share.
        graph: calls them by their names.
    """

    is_traced = True

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph, "GraphNetwork")
        # Tensors that are attributes of the network or made by its forward came as buffers; they stay out of the state dict.
        constants = {name: value for name, value in self._buffers.items() if name not in root._buffers}
        self._modules = dict(root._modules)
        self._parameters = dict(root._parameters)
        self._buffers = {**root._buffers, **constants}
        self._non_persistent_buffers_set = {*root._non_persistent_buffers_set, *constants}

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphNetwork:
        root = nn.Module()
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_graph", "_code", "meta")}
        root.__dict__.update(copy.deepcopy(kept, memo))
        twin = GraphNetwork(root, copy.deepcopy(self.graph))
        twin.__dict__.update({name: value for name, value in root.__dict__.items() if "hooks" in name})
        memo[id(self)] = twin
        return twin


@dataclass(frozen=True)
class Value:
    """What a node gave on the example.

    Args:
        shape: of its tensor; None for a tuple of tensors.
        storages: where its floating-point tensors lie, by which views and in-place operators are recognized.
        constant: made of parameters and numbers alone.
    """

    shape: tuple[int, ...] | None
    storages: frozenset[int]
    constant: bool


@dataclass(frozen=True)
class Traced:
    """A network and its graph.

    Args:
        root: the network, or a bare module that holds what it holds and the graph's constants.
        graph: of one forward in eval mode.
        values: of the nodes that give floating-point tensors.
        names: node -> path of the module that it calls, or of the module around it and the function's name (`layer1.0.add`).
        owned: storages of parameters and buffers.
    """

    root: nn.Module
    graph: fx.Graph
    values: Mapping[fx.Node, Value]
    names: Mapping[fx.Node, str]
    owned: frozenset[int]

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a `call_module` node calls."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The activations that a node reads: tensors that depend on the images."""
        return [value for value in node.all_input_nodes if value in self.values and not self.values[value].constant]

    def kind(self, node: fx.Node) -> str:
        """`operator_of`, with an add or multiply of one activation and a constant as `other`, like a norm's scale and shift."""
        kind = operator_of(node, self.module_of(node))
        operands = self.operands(node)
        if kind in ("add", "multiply") and len(operands) < 2 and not _doubles(node):
            return "other"
        if kind == "other" and any(self._is_matrix(value) for value in node.all_input_nodes):
            return "attention"  # a function that is not entered and takes a weight, as torchvision's shifted windows
        selects = node.op == "call_function" and function_name(node) == "getitem"
        if kind == "keep" and selects and self.values[operands[0]].shape is None and self.kind(operands[0]) != "keep":
            return "other"  # one result of an operator that has several
        return kind

    def _is_matrix(self, node: fx.Node) -> bool:
        value = self.values.get(node)
        return value is not None and value.constant and value.shape is not None and len(value.shape) > 1 and node.op == "get_attr"

    def build(self, insertions: Sequence[Insertion] = (), network: nn.Module | None = None) -> GraphNetwork:
        """The graph as a module, with modules inserted.

        Parameters, buffers and modules are shared with the network, modes included; use `copy.deepcopy` for a copy.

        Args:
            insertions: equal names are one module.
            network: other weights to share than the traced network's: a copy of it, folded or not.
        """
        source = network if network is not None else self.root
        root = _bare(source)
        root.__dict__.update({name: value for name, value in self.root.__dict__.items() if name.startswith(_CONSTANT)})
        graph = fx.Graph()
        twins: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.graph, twins))
        first = next(node for node in graph.nodes if node.op != "placeholder")
        for insertion in insertions:
            attach(root, insertion.name, insertion.module)
            twin = twins[insertion.node]
            readers = None if insertion.users is None else {twins[user] for user in insertion.users}
            with graph.inserting_before(first) if twin.op == "placeholder" else graph.inserting_after(twin):
                call = graph.call_module(insertion.name, (twin,), dict(insertion.options))
            for user in list(twin.users):
                if user is not call and (readers is None or user in readers):
                    user.replace_input_with(twin, call)
        graph.lint()
        return GraphNetwork(root, graph)


_CONSTANT = "_tensor_constant"  # torch.fx's name for tensors that a forward makes
_ORDER_OF_SUMS = 1e-3  # of the largest result: what float32 sums in another order differ by, with room for deep networks
_HELD = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


def trace(model: nn.Module, example: Tensor, *, sized: bool = False, enter: bool = True) -> Traced:
    """Trace a network in eval mode, and check the graph against it on the example; modes and buffers are as before afterwards.

    The graph gives the network's own numbers bit by bit, but where attention was taken apart (`qexp.nn.attention`).

    Args:
        model: any network of one image tensor.
        example: [N, C, H, W] images as the network takes them, on its device; N = 1 suffices.
        sized: follow it at the example's height and width, by which it decides; N > 1 then.
        enter: take attention apart.

    Raises:
        UserError: the network decides by the values of tensors, which no trace can follow, or computes other numbers than its
            trace; names the module.
    """
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):
        graph, constants = fx_graph(model, example=example if sized else None)
        root = _bare(model)
        root.__dict__.update(constants)
        recorder, output = _recorded(root, graph, example)
        expected = model(example)
        same = all(_is_equal(a, b) for a, b in zip(tensors_of(output), tensors_of(expected), strict=True))
        shapes = {node: value.shape for node, value in recorder.values().items()}
        if same and enter and enter_attention(root, graph, shapes, example.device):
            recorder, output = _recorded(root, graph, example)
            same = all(_is_close(a, b) for a, b in zip(tensors_of(output), tensors_of(expected), strict=True))
    if not same:
        remedy = "Its graph gives other numbers: something in its forward depends on more than the images."
        raise UserError("model", type(model).__name__, allowed="a network that torch.fx can trace", remedy=remedy)
    owned = frozenset(tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers()))
    return Traced(root, graph, recorder.values(), node_names(graph), owned)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module's mode is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _ValueRecorder(fx.Interpreter):
    """Runs the graph and notes what each node gave; results stay alive, so that no memory is used twice."""

    def values(self) -> dict[fx.Node, Value]:
        values: dict[fx.Node, Value] = {}
        for node in self.graph.nodes:
            tensors = list(tensors_of(self.env.get(node)))
            if not tensors or node.op == "output":
                continue
            result = self.env[node]
            storages = frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
            inputs = [values[source] for source in node.all_input_nodes if source in values]
            constant = node.op != "placeholder" and all(source.constant for source in inputs)
            values[node] = Value(tuple(result.shape) if isinstance(result, Tensor) else None, storages, constant)
        return values


def _recorded(root: nn.Module, graph: fx.Graph, example: Tensor) -> tuple[_ValueRecorder, Any]:
    """What each node gives on the example, and the result; the generator is as before afterwards."""
    recorder = _ValueRecorder(root, garbage_collect_values=False, graph=graph)
    state = torch.random.get_rng_state()
    output = recorder.run(example)
    torch.random.set_rng_state(state)
    return recorder, output


def _is_equal(value: Tensor, expected: Tensor) -> bool:
    """True where two results are the same bit by bit; nan, of weights that diverged, is nan."""
    return torch.equal(value, expected) or bool(value.shape == expected.shape and value.allclose(expected, 0, 0, equal_nan=True))


def _is_close(value: Tensor, expected: Tensor) -> bool:
    """True where two results differ by no more than the order of sums explains; only what should be finite is compared."""
    finite = expected.isfinite()
    value, expected = value[finite], expected[finite]
    return value.numel() == 0 or float((value - expected).abs().max()) <= _ORDER_OF_SUMS * float(expected.abs().max())


def node_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Node -> a path that a person can find in the source; the second of a name gets `_1`."""
    names: dict[fx.Node, str] = {}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            name = str(node.target)
        elif node.op == "placeholder":
            name = "input"
        else:
            scope = next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0]
            name = f"{scope}.{function_name(node)}".lstrip(".")
        number = counts.get(name, 0)
        counts[name] = number + 1
        names[node] = f"{name}_{number}" if number else name
    return names


def _doubles(node: fx.Node) -> bool:
    """True for x + x and x * x."""
    return len(node.args) > 1 and node.args[0] is node.args[1]


def _bare(model: nn.Module) -> nn.Module:
    """A module without a forward that holds what another holds, in dictionaries of its own."""
    root = nn.Module()
    root.__dict__.update({name: copy.copy(value) for name, value in model.__dict__.items() if name in _HELD})
    root.__dict__.update({name: value for name, value in model.__dict__.items() if isinstance(value, Tensor)})
    root.training = model.training
    return root


def attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path; modules that are missing on the way are made, empty.

    Args:
        root: of the path.
        path: dotted.
        module: replaces what is there.
    """
    *parents, last = path.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root._modules[last] = module
