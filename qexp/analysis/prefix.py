"""Networks that differ from a float one in later layers alone start from the float activations before the first that differs.

The float network is traced once. Of each batch one *cut* is kept: the values that the nodes from the first differing layer on
read. The next width of that layer starts there, and the next layer moves the cut on. So layers in the network's order cost one
float pass in all, and half of each evaluation where layers cost alike; which evaluation is done when is as without it, so what
is stored after each is complete. The same operators read the same numbers: logits are equal bit by bit.

Rejected: keeping the cuts of all layers and batches outermost, which takes many times the memory, and would store a layer's
numbers only when all layers are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from qexp.base.console import print_main
from qexp.base.errors import UserError
from qexp.base.outputs import main_output
from qexp.nn.graph import trace

MIB = 2**20
Values = dict[fx.Node, Any]


@dataclass(frozen=True, eq=False)
class _Cut:
    """What a batch's nodes from one on read.

    Args:
        position: of that node in the graph.
        values: of earlier nodes.
        size: of their tensors, bytes.
    """

    position: int
    values: Values
    size: int


class Prefix:
    """The float activations of one set of batches, reused by networks that differ from the float one.

    Args:
        network: the float one, in eval mode; its tensors stay as they are.
        example: [1, C, H, W] images, on its device.
        budget_mib: of the kept activations; batches beyond it run whole. 0 reuses nothing.
    """

    def __init__(self, network: nn.Module, example: Tensor, budget_mib: int) -> None:
        self.network, self.budget = network, budget_mib * MIB
        self._cuts: dict[int, _Cut] = {}  # by the batch's number
        self._refused: dict[int, int] = {}  # batch -> position whose cut cannot be kept
        self._checked = self._said = False
        self._graph: fx.Graph | None = None
        if budget_mib:
            try:
                traced = trace(network, example, enter=False)
            except UserError as error:
                self._off(str(error))
            else:
                self._graph, self._root = traced.graph, traced.root
                self._nodes = list(self._graph.nodes)
                self._last_reader = _last_readers(self._nodes)

    @property
    def size(self) -> int:
        """Of the kept activations, bytes."""
        return sum(cut.size for cut in self._cuts.values())

    def run_of(self, model: nn.Module) -> Callable[[Tensor], object]:
        """What runs a network over the batches, once, in their order: images [N, C, H, W] -> what the network returns.

        Args:
            model: in eval mode; where it has other modules than the float network it runs itself.
        """
        position = self._first_difference(model)
        if position is None:
            return model
        numbers = iter(range(2**63))
        return lambda images: self._run(model, position, next(numbers), images)

    def _first_difference(self, model: nn.Module) -> int | None:
        """Position of the first node that reads a tensor that differs; None where there is nothing to reuse."""
        if self._graph is None or model is self.network:
            return None
        if _structure(model) != _structure(self.network):
            self._say_other()
            return None
        before, after = _tensors(self.network), _tensors(model)
        if before.keys() != after.keys():
            return None
        changed = [name for name, tensor in after.items() if not _same(tensor, before[name])]
        readers = [self._first_reader(name) for name in changed]
        known = [position for position in readers if position is not None]
        if not known or len(known) < len(readers):
            return None
        first = min(known)
        computed = any(node.op in ("call_module", "call_function", "call_method") for node in self._nodes[:first])
        return first if computed else None

    def _first_reader(self, name: str) -> int | None:
        for position, node in enumerate(self._nodes):
            target = str(node.target)
            if (node.op == "get_attr" and name == target) or (node.op == "call_module" and name.startswith(f"{target}.")):
                return position
        return None

    def _run(self, model: nn.Module, position: int, number: int, images: Tensor) -> object:
        cut = self._cut(position, number, images) if self._graph is not None else None
        if cut is None:
            return model(images)
        # Later nodes may write over what they read: the kept values stay.
        output = self._through(model, dict(_copied(cut.values)), position, len(self._nodes))[self._nodes[-1]]
        if not self._checked:
            whole = model(images)
            if not torch.equal(main_output(output).view(torch.uint8), main_output(whole).view(torch.uint8)):
                self._off("the first batch has other logits from the kept activations on")
                return whole
            self._checked = True
        return output

    def _cut(self, position: int, number: int, images: Tensor) -> _Cut | None:
        """The batch's cut before a node, moved on from where it is; None where it cannot be kept."""
        cut = self._cuts.get(number)
        if cut is not None and cut.position == position:
            return cut
        if self._refused.get(number) == position:
            return None
        cut = self._cuts.pop(number, None)
        if cut is None or cut.position > position:
            cut = _Cut(0, {self._nodes[0]: images.clone()}, 0)
        values = self._through(self._root, cut.values, cut.position, position)
        values = {node: value for node, value in values.items() if self._last_reader.get(node, -1) >= position}
        size = _size(values)
        if size is None or self.size + size > self.budget:
            self._refused[number] = position
            return None
        self._cuts[number] = _Cut(position, values, size)
        return self._cuts[number]

    def _through(self, root: nn.Module, values: Values, begin: int, end: int) -> Values:
        """Run the nodes from `begin` to before `end` on a network's modules; values go when nothing reads them any more."""
        assert self._graph is not None
        runner = fx.Interpreter(_with_constants(root, self._root), graph=self._graph)
        runner.env = values
        for position in range(begin, end):
            node = self._nodes[position]
            if node not in values:  # the images
                values[node] = runner.run_node(node)
            for source in node.all_input_nodes:
                if self._last_reader[source] == position:
                    values.pop(source, None)
        return values

    def _say_other(self) -> None:
        if not self._said:
            self._said = True
            print_main("analyze.reuse_mib: networks with other modules than the float network run whole")

    def _off(self, reason: str) -> None:
        self._graph, self._cuts = None, {}
        print_main(f"analyze.reuse_mib: every network runs whole: {reason}")


def _copied(values: Values) -> Iterator[tuple[fx.Node, Any]]:
    """The values, their tensors copied."""
    for node, value in values.items():
        yield node, map_aggregate(value, lambda part: part.clone() if isinstance(part, Tensor) else part)


def _last_readers(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """Node -> position of the last node that reads it."""
    return {source: position for position, node in enumerate(nodes) for source in node.all_input_nodes}


def _structure(model: nn.Module) -> dict[str, tuple[type, int]]:
    """Module -> its type and its number of hooks before and after forward."""
    return {
        name: (type(module), len(module._forward_pre_hooks) + len(module._forward_hooks))
        for name, module in model.named_modules(remove_duplicate=False)
    }


def _tensors(model: nn.Module) -> Mapping[str, Tensor]:
    """Parameters and buffers, those outside the state dict included, under all their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _same(one: Tensor, other: Tensor) -> bool:
    """True where two tensors have the same bits, so that nan is nan and -0 is not 0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.detach().reshape(-1).view(torch.uint8), other.detach().reshape(-1).view(torch.uint8))


def _size(values: Values) -> int | None:
    """Bytes of the tensors; None where copies would be laid out otherwise, or two values share memory that may be written."""
    tensors: list[Tensor] = []
    map_aggregate(tuple(values.values()), lambda part: tensors.append(part) if isinstance(part, Tensor) else None)
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    if len(storages) < len(tensors) or any(tensor.stride() != torch.empty_like(tensor).stride() for tensor in tensors):
        return None
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _with_constants(model: nn.Module, root: nn.Module) -> nn.Module:
    """A bare module with what a network holds, and with tensors that the traced forward makes."""
    bare = nn.Module()
    bare.__dict__.update({name: value for name, value in root.__dict__.items() if isinstance(value, Tensor)})
    bare.__dict__.update({name: model.__dict__[name] for name in ("_modules", "_parameters", "_buffers")})
    return bare
