"""torch.fx's graph of a network's forward, and where tracing got stuck."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from qexp.base.errors import UserError
from qexp.nn.shadow import refuse_instance_forward


def fx_graph(model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> tuple[fx.Graph, dict[str, Tensor]]:
    """torch.fx's graph of a network in the mode that it is in, and the tensors that its forward makes.

    Args:
        model: as before afterwards.
        leaves: own modules that are not entered, beside torch's.

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
        return _Tracer(leaves).trace(model), constants
    finally:
        # torch.fx puts tensors that a forward makes on the network as attributes; they belong to the graph.
        constants |= {name: model.__dict__.pop(name) for name in list(model.__dict__) if name not in before}


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
