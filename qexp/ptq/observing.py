"""Observing as a scope: hooks that are there within and gone after, whatever happens.

Nothing is added to the network: no observer modules, no switches. Modes, buffers and other people's hooks are as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError, choose
from qexp.config.calibrate import SIDES
from qexp.ptq.observers import Observer


@contextmanager
def observing(model: nn.Module, places: Mapping[str, Observer], *, side: str = "output") -> Iterator[Mapping[str, Observer]]:
    """Let each observer see what its module gives out (or takes in) while the scope lasts.

    Args:
        model: any module.
        places: qualified module name (`layer1.0.relu`; empty for the model itself) -> observer.
        side: `output`, or `input`, the first positional argument.

    Raises:
        UserError: no module has that name; later, in a forward, a module whose output or input is no tensor.

    >>> from qexp.ptq.observers import EndsObserver
    >>> from qexp.config.calibrate import CalibrateSettings
    >>> model = nn.Sequential(nn.ReLU())
    >>> with observing(model, {"0": EndsObserver(CalibrateSettings())}) as stats:
    ...     _ = model(torch.tensor([-1.0, 2.0]))
    >>> stats["0"].extremes()
    (tensor([0.]), tensor([2.]))
    """
    choose("side", side, SIDES)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in places:
        choose("place", name, modules)
    handles = []
    try:
        for name, observer in places.items():
            hook = _Hook(name, observer)
            module = modules[name]
            handles.append(
                module.register_forward_hook(hook.output) if side == "output" else module.register_forward_pre_hook(hook.input)
            )
        yield places
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    """Passes one module's tensors on to its observer, and names the place where that raises."""

    def __init__(self, name: str, observer: Observer) -> None:
        self.name, self.observer = name, observer

    def output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._see(output)

    def input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._see(args[0] if args else None)

    def _see(self, value: Any) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = f"{type(value).__name__} at {self.name or 'the model itself'}"
            raise UserError("place", what, allowed="a module where one floating-point tensor passes")
        with torch.no_grad():
            self.observer.observe(value)
