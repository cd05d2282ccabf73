"""What a network returns: logits, or logits with auxiliary heads beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

# GoogLeNet's discount for its auxiliary classifiers; Inception v3's recipe is close enough to share it.
# Source: Szegedy et al. 2015, Going Deeper with Convolutions, section 5.
AUX_WEIGHT = 0.3


def main_output(output: Any) -> Tensor:
    """The logits [N, C] among what a network returned: the tensor itself, or the first entry of a (named) tuple or list."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(f"a network must return logits [N, C], or a tuple that begins with them, not {type(output).__name__}")


def total_loss(output: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """loss(main) + 0.3 sum(loss(aux)) over the auxiliary outputs that are there, as in GoogLeNet and Inception."""
    value = loss(main_output(output))
    if not isinstance(output, Tensor):
        for aux in output[1:]:
            if isinstance(aux, Tensor):
                value = value + AUX_WEIGHT * loss(aux)
    return value
