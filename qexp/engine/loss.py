"""The loss of a network that may have auxiliary heads, and may learn from another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from qexp.base.outputs import main_output

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


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 sum_i KL(softmax(teacher_i / T) || softmax(student_i / T)), nats; T^2 keeps its gradients' size whatever T is.

    Args:
        student: logits [N, C].
        teacher: logits [N, C].
        temperature: T.

    Source: Hinton, Vinyals and Dean 2015, section 2 (arXiv:1503.02531).
    """
    log_probs, targets = (F.log_softmax(logits.float() / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(log_probs, targets, reduction="sum", log_target=True)
