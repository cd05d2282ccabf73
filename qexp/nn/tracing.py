"""torch.fx's graph of a network's forward, and where tracing got stuck."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from qexp.base.errors import UserError
from qexp.nn.shadow import refuse_instance_forward

_PLAIN = (type(None), bool, int, float, str)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def fx_graph(model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> tuple[fx.Graph, dict[str, Tensor]]:
    """torch.fx's graph of a network in the mode that it is in, and the tensors that its forward makes.

    Args:
        model: as before afterwards.
        leaves: own modules that are not entered, beside torch's.

    Raises:
        UserError: the network decides by the values of tensors, which no trace can follow; names the module.
    """
    refuse_instance_forward(model)
    before: set[str] = set(model.__dict__)
    constants: dict[str, Tensor] = {}
    try:
        settled = _defaults(model)
        graph = _Tracer(leaves).trace(model, settled or None)
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
