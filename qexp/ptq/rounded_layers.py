"""What the corrections that choose codes share: which layers they go through, one after another, and what they made of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qexp.base.progress import track
from qexp.base.text import Note
from qexp.nn.channels import LAYERS, Layer, as_layer
from qexp.ptq.layer_inputs import layers_in_order


@dataclass(frozen=True)
class Rounded:
    """What a correction made of one weight.

    Args:
        name: of the weight in the state dict.
        nearest_mse: mean squared error of the layer's output on the calibration images, over channels and positions, quantized
            inputs included, rounded to nearest.
        mse: the same error with the chosen codes.
        flipped: share of the weights whose code is not the nearest.
        damping: of the second moments, relative to their mean diagonal, the largest of a group; None where none is added.
    """

    name: str
    nearest_mse: float
    mse: float
    flipped: float
    damping: float | None = None


@dataclass(frozen=True)
class RoundedLayers:
    """What a correction that chooses codes made of a network.

    Args:
        rows: one per rounded weight, in order of execution.
        notes: weights that stay rounded to nearest, and why.
    """

    rows: tuple[Rounded, ...]
    notes: tuple[Note, ...]


def layers_to_round(
    quantized: nn.Module, reference: nn.Module, specs: Collection[str], images: Tensor, notes: list[Note]
) -> Iterator[tuple[str, Layer]]:
    """The layers of the quantized network whose weight is planned, by name, in the order in which one forward calls them.

    Left out, with a note: weights of layers that run several times, that several layers have, or that are no layer's that runs.

    Args:
        quantized: in eval mode.
        reference: the float network, with the same layers under the same names.
        specs: names of the planned weights; vectors are passed over.
        images: [N, C, H, W], one suffices.
        notes: gets one for each weight that is left out.
    """
    order, repeated = layers_in_order(quantized, images)
    owners = Counter(id(module.weight) for module in quantized.modules() if isinstance(module, LAYERS))
    notes += _left_alone(specs, order, repeated, reference)
    for layer in track([layer for layer in order if f"{layer}.weight" in specs], "layer", note=str):
        module = as_layer(quantized.get_submodule(layer))
        if owners[id(module.weight)] > 1:  # what one layer is given would be written over by the other
            notes.append(Note(f"{layer}.weight", "rounded to nearest, another layer has the same weight"))
            continue
        yield layer, module


def _left_alone(specs: Collection[str], order: Sequence[str], repeated: Sequence[Note], reference: nn.Module) -> list[Note]:
    """Why planned weights stay rounded to nearest: their layer runs several times, or they are no layer's that runs."""
    read = {f"{layer}.weight" for layer in (*order, *(note.layer for note in repeated))}
    kernels = {name for name, tensor in reference.named_parameters() if tensor.dim() > 1}
    why = "rounded to nearest, it is no weight of a convolution or linear layer that runs"
    alone = [Note(name, why) for name in specs if name in kernels - read]
    return [*(note for note in repeated if f"{note.layer}.weight" in specs), *alone]
