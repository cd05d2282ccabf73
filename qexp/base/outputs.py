"""What a network returns, reduced to its logits."""

from __future__ import annotations

from torch import Tensor

from qexp.base.errors import UserError


def main_output(output: object) -> Tensor:
    """The logits [N, C] of whatever a network returned.

    GoogLeNet and Inception return (logits, auxiliary logits) while they train, so the first of a sequence is taken.

    Raises:
        UserError: neither a tensor nor a sequence that begins with one.
    """
    logits = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(logits, Tensor):
        raise UserError("model", f"(returned {type(output).__name__})", allowed="logits, or a sequence that begins with them")
    return logits
