"""Watching what passes modules, as a scope: hooks that are there within and gone after, whatever happens.

Nothing is added to the network: no observer modules, no switches. Modes, buffers and other people's hooks are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError

Watch = Callable[[str, Tensor], None]


@contextmanager
def watching(modules: Mapping[str, nn.Module], watch: Watch, *, inputs: bool = False) -> Iterator[None]:
    """While it lasts, `watch(name, values)` is called with what each module gives out (or takes in).

    Args:
        modules: name -> module.
        watch: must not change the values; it runs without gradients.
        inputs: watch the first positional argument instead of the output.

    Raises:
        UserError: in a forward, a module whose output or input is no floating-point tensor.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = _Hook(name, watch)
            handle = module.register_forward_pre_hook(hook.input) if inputs else module.register_forward_hook(hook.output)
            stack.callback(handle.remove)
        yield


class _Hook:
    """Passes one module's tensors on, and names the module where they are none."""

    def __init__(self, name: str, watch: Watch) -> None:
        self.name, self.watch = name, watch

    def output(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        self._pass_on(output)

    def input(self, module: nn.Module, args: tuple[object, ...]) -> None:
        self._pass_on(args[0] if args else None)

    def _pass_on(self, value: object) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = f"{type(value).__name__} at {self.name or 'the model itself'}"
            raise UserError("place", what, allowed="a module where one floating-point tensor passes")
        with torch.no_grad():
            self.watch(self.name, value)
