"""Inputs and outputs of one layer after another of a network that runs: what the corrections that read images share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from qexp.base.text import Note
from qexp.nn.channels import Layer, as_layer, is_layer

Hook = Callable[[str, Layer, Tensor, Tensor], Tensor | None]  # (name, layer, input, output) -> another output, or None


class _LastLayerReached(Exception):
    """Unwinds a forward whose last layer of interest has run."""


def layers_in_order(model: nn.Module, images: Tensor) -> tuple[list[str], tuple[Note, ...]]:
    """Convolutions and linear layers by name, in the order in which one forward calls them, and notes on those it calls twice.

    Layers that are called more than once are left out: their rounding errors meet several inputs.

    Args:
        model: in eval mode.
        images: [N, C, H, W], one suffices.
    """
    calls: list[str] = []
    names = {name: module for name, module in model.named_modules() if is_layer(module)}
    with hooked(names, lambda name, layer, x, y: calls.append(name)):
        model(images)
    counts = Counter(calls)
    notes = tuple(Note(name, f"left alone, it is called {count} times") for name, count in counts.items() if count > 1)
    return [name for name in counts if counts[name] == 1], notes


@contextmanager
def hooked(layers: Mapping[str, Layer], hook: Hook) -> Iterator[None]:
    """Within, `hook` sees input and output of each of these layers, and may replace the output; hooks are gone afterwards.

    Args:
        layers: name -> layer.
        hook: gets name, layer, input and output; what it returns replaces the output, unless that is None.
    """

    def adapter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        return lambda layer, args, output: hook(name, as_layer(layer), args[0], output)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(adapter(name)).remove)
        yield


def run_until(model: nn.Module, images: Tensor, layers: Sequence[str], hook: Hook) -> None:
    """Run the network until the last of `layers` has been called; `hook` sees them all.

    Args:
        model: in eval mode.
        images: [N, C, H, W].
        layers: in order of execution, each called once in a forward.
        hook: as for `hooked`.
    """
    modules = {name: as_layer(model.get_submodule(name)) for name in layers}

    def stop(name: str, layer: Layer, x: Tensor, y: Tensor) -> Tensor | None:
        output = hook(name, layer, x, y)
        if name == layers[-1]:
            raise _LastLayerReached
        return output

    with hooked(modules, stop):
        try:
            model(images)
        except _LastLayerReached:
            pass


def input_and_output(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer of a network reads and gives on these images.

    Args:
        model: in eval mode; it runs no further than the layer.
        layer: its name; it is called once in a forward.
        images: [N, C, H, W].
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(name: str, module: Layer, x: Tensor, y: Tensor) -> None:
        seen.append((x, y))

    run_until(model, images, [layer], keep)
    return seen[0]
