"""A call in a network's graph on its way into a file, whatever the format: what is called, with what, and how that is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from torch import Tensor, nn

from qexp.base.errors import UserError


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor made of parameters alone.

    Args:
        tensor: its values.
        path: its state-dict name, empty where it was computed from others.
        per_image: its first dimension, of size 1 here, is repeated for each image.
    """

    tensor: Tensor
    path: str = ""
    per_image: bool = False


@dataclass(frozen=True, eq=False)
class GraphCall:
    """A call of a module, function or method.

    Args:
        name: a path that a person finds in the source.
        operator: what is called, in a reader's words.
        module: of a `call_module` node, None else.
        path: of the module in the network.
        args: positional arguments: values of the file, `Constant` and numbers.
        kwargs: further arguments by name.
        result: what the call gave on the example.
        where: of a function, the path of the module around it and its name.
        sizes: the shape of its result as ONNX's Reshape takes it, 0 or -1 where images are counted; empty for several results.
        batch: dimension of its first operand that counts the images.
    """

    WRITTEN: ClassVar[str] = "an operator that qexp writes"  # what a refusal says is allowed

    name: str
    operator: str
    module: nn.Module | None
    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    where: str = ""
    sizes: tuple[int, ...] = ()
    batch: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result on the example."""
        return tuple(self.result.shape)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of a function by position or name, or of a module the attribute of that name.

        Args:
            position: of a function's argument.
            name: of a function's argument, or of a module's attribute.
            default: where there is none.
        """
        if self.module is not None and position:
            value = getattr(self.module, name, default)
            return Constant(value.detach(), f"{self.path}.{name}") if isinstance(value, Tensor) else value
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that names module and operator."""
        raise UserError("export", f"{self.where or self.name} ({self.operator})", allowed=self.WRITTEN, remedy=f"Here {why}.")
