"""Inputs and outputs of one layer after another of a network that runs: what the corrections that read images share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from qexp.base.text import Note
from qexp.nn.channels import Layer, as_layer, is_layer

KEPT_BYTES = 1 << 30  # of outputs, for each network that is gone through layer by layer
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


class LayerByLayer:
    """What one layer after another of a network reads and gives on the same images, though the layers before it change.

    A network runs from its images to the layer each time. What a layer gave is kept once the next one is asked for, and not
    computed again, as far as `KEPT_BYTES` reach: of the last layers, whose products cost most for their size. A layer whose
    outputs exceed that alone is computed from the images again. At no time is more held, but for a batch.

    Args:
        model: in eval mode; a layer may change until the next one is asked for, and not after.
        images: batches [N, C, H, W].
    """

    def __init__(self, model: nn.Module, images: Sequence[Tensor]) -> None:
        self.model, self.images = model, images
        self.order, _ = layers_in_order(model, images[0][:1])
        self.kept: dict[str, list[Tensor]] = {}

    def at(self, layer: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Its input and its output on each batch, all of which are to be taken.

        Args:
            layer: its name; it is called once in a forward, and after the one that was asked for last.
        """
        before = self.order[: self.order.index(layer)][-1:]
        outputs: list[Tensor] | None = []
        for number, batch_images in enumerate(self.images):
            seen: list[tuple[Tensor, Tensor]] = []
            made: list[Tensor] = []

            def hook(
                name: str,
                module: Layer,
                x: Tensor,
                y: Tensor,
                seen: list[tuple[Tensor, Tensor]] = seen,
                made: list[Tensor] = made,
            ) -> None:
                if name == layer:
                    seen.append((x, y))
                else:
                    made.append(y.clone())  # what follows may write into it

            with self._kept(number):
                run_until(self.model, batch_images, [*before, layer], hook)
            outputs = None if outputs is None or not self._has_room([*outputs, *made]) else [*outputs, *made]
            yield seen[0]
        if outputs is not None:
            self.kept |= dict.fromkeys(before, outputs)

    @contextmanager
    def _kept(self, number: int) -> Iterator[None]:
        """Within, layers whose outputs are kept give those of this batch."""
        modules = {name: self.model.get_submodule(name) for name in self.kept}
        for name, module in modules.items():
            module.__dict__["forward"] = lambda x, name=name: self.kept[name][number].clone()
        try:
            yield
        finally:
            for module in modules.values():
                del module.__dict__["forward"]

    def _has_room(self, outputs: Sequence[Tensor]) -> bool:
        """Drop what is kept of the first layers until these outputs fit beside the rest; False where they do not fit alone."""
        for name in [name for name in self.order if name in self.kept]:
            if _num_bytes(outputs) + sum(map(_num_bytes, self.kept.values())) <= KEPT_BYTES:
                break
            del self.kept[name]
        return _num_bytes(outputs) <= KEPT_BYTES


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
