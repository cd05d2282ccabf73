"""torch.fx's graph of a network's forward, and where tracing got stuck."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from qexp.base.errors import UserError
from qexp.nn.shadow import refuse_instance_forward

_PLAIN = (type(None), bool, int, float, str)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def fx_graph(
    model: nn.Module, leaves: tuple[type[nn.Module], ...] = (), *, example: Tensor | None = None
) -> tuple[fx.Graph, dict[str, Tensor]]:
    """torch.fx's graph of a network in the mode that it is in, and the tensors that its forward makes.

    Args:
        model: as before afterwards.
        leaves: own modules that are not entered, beside torch's.
        example: [N, C, H, W] images, N > 1, at whose sizes the forward is followed: sizes that are others for N + 1 images stay
            computed, the rest are numbers. None follows it for any sizes.

    Raises:
        UserError: the network decides by the values of tensors, which no trace can follow; names the module.
    """
    refuse_instance_forward(model)
    if getattr(model, "is_traced", False):  # whose nodes know where in the network's source they come from
        assert isinstance(model, fx.GraphModule), type(model)
        return copy.deepcopy(model.graph), {}
    before: set[str] = set(model.__dict__)
    constants: dict[str, Tensor] = {}
    try:
        settled = _defaults(model)
        tracer = _Tracer(leaves) if example is None else _SizedTracer(leaves, example)
        graph = tracer.trace(model, settled or None)
        _drop_settled(graph, settled)
        return graph, constants
    finally:
        # torch.fx puts tensors that a forward makes on the network as attributes; they belong to the graph.
        constants |= {name: model.__dict__.pop(name) for name in list(model.__dict__) if name not in before}


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Arguments of a forward beside its first that have plain defaults: they are what is traced with, as nobody gives others."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {one.name: one.default for one in parameters if isinstance(one.default, _PLAIN) and one.kind in _BY_NAME}


def _drop_settled(graph: fx.Graph, settled: dict[str, Any]) -> None:
    """Take out of a graph the inputs that have one value, and torch.fx's checks of these."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        if node.target.rpartition("_")[0] in settled:
            for reader in list(node.users):
                for last in [*reader.users, reader]:
                    graph.erase_node(last)
            graph.erase_node(node)


class _Tracer(fx.Tracer):
    """torch.fx's tracer, which says in which module it got stuck."""

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves, self.path = leaves, [""]
        self.stuck: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.path.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.stuck = self.stuck or self.path[-1]
            raise
        finally:
            self.path.pop()

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        try:
            return super().trace(root, concrete_args)
        except Exception as error:  # whatever a forward raises on symbols
            where = self.stuck or type(root).__name__
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            remedy = (
                f"Tracing stopped in module {where}: {text} Branches and loops on the values of tensors cannot be followed: take "
                "them out of its forward, or into a function marked with torch.fx.wrap, which is then not entered."
            )
            raise UserError("model", type(root).__name__, allowed="a network that torch.fx can trace", remedy=remedy) from error


class _SizedProxy(fx.Proxy):
    """A value whose sizes are those of the example, but for those that the number of images decides."""

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """Its shape for each of the examples; None where it is no tensor."""
        assert isinstance(self.tracer, _SizedTracer), self.tracer
        values = self.tracer.values.get(self.node, ())
        shapes = tuple(tuple(value.shape) for value in values if isinstance(value, Tensor) and value.dim())
        return shapes if len(shapes) == len(self.tracer.examples) else None

    def _size(self, dim: int) -> Any:
        assert self._shapes is not None
        size, *others = (shape[dim] for shape in self._shapes)
        return size if {size} >= set(others) else self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def size(self, dim: int | None = None) -> Any:
        if self._shapes is None:
            return super().__getattr__("size")(*([] if dim is None else [dim]))
        return tuple(map(self._size, range(self.dim()))) if dim is None else self._size(dim)

    def dim(self) -> Any:
        return super().__getattr__("dim")() if self._shapes is None else len(self._shapes[0])

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "ndim") or self._shapes is None:
            return super().__getattr__(name)
        return self.size() if name == "shape" else self.dim()


class _SizedTracer(_Tracer):
    """Runs every operator on the example as it is written down, so that sizes are known: with two numbers of images."""

    def __init__(self, leaves: tuple[type[nn.Module], ...], example: Tensor) -> None:
        super().__init__(leaves)
        self.examples = (example, torch.cat([example, example[:1]]))
        self.values: dict[fx.Node, tuple[Any, ...]] = {}  # one for each example
        self._runs = False  # an operator, whose modules are not written down

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _SizedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        self._runs = True
        try:
            self._value(proxy.node)
        finally:
            self._runs = False
        return proxy

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs) if self._runs else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._runs else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, node: fx.Node) -> tuple[Any, ...]:
        if node not in self.values:  # buffers come without a proxy
            self.values[node] = tuple(self._run(node, number) for number in range(len(self.examples)))
        return self.values[node]

    @torch.no_grad()
    def _run(self, node: fx.Node, number: int) -> Any:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: self._value(source)[number])
        if node.op == "placeholder":
            return self.examples[number].clone()
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs) if node.op == "call_function" else None  # type: ignore[operator]
