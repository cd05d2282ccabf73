"""The loss of a network that may have auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from qexp.models.outputs import main_output

# GoogLeNet's discount for its auxiliary classifiers; Inception v3's recipe is close enough to share it.
# Source: Szegedy et al. 2015, Going Deeper with Convolutions, section 5.
AUX_WEIGHT = 0.3


def total_loss(output: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """loss(main) + 0.3 sum(loss(aux)) over the auxiliary outputs that are there, as in GoogLeNet and Inception."""
    value = loss(main_output(output))
    if not isinstance(output, Tensor):
        for aux in output[1:]:
            if isinstance(aux, Tensor):
                value = value + AUX_WEIGHT * loss(aux)
    return value
