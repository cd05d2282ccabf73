"""Observing as a scope: each observer sees what passes its module (`qexp.nn.watching`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from qexp.base.errors import choose
from qexp.config.calibrate import SIDES
from qexp.nn.watching import watching
from qexp.ptq.observers import Observer


@contextmanager
def observing(model: nn.Module, observers: Mapping[str, Observer], *, side: str = "output") -> Iterator[Mapping[str, Observer]]:
    """Let each observer see what its module gives out (or takes in) while the scope lasts.

    Args:
        model: any module.
        observers: qualified module name (`layer1.0.relu`; empty for the model itself) -> its observer.
        side: `output`, or `input`, the first positional argument.

    Raises:
        UserError: no module has that name; later, in a forward, a module whose output or input is no tensor.

    >>> import torch
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
    for name in observers:
        choose("place", name, modules)
    observed = {name: modules[name] for name in observers}
    with watching(observed, lambda name, values: observers[name].observe(values), inputs=side == "input"):
        yield observers
