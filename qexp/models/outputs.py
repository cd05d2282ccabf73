"""What a network returns, reduced to its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qexp.base.errors import UserError


def main_output(output: Any) -> Tensor:
    """The logits [N, C] of whatever a network returned.

    GoogLeNet and Inception return (logits, auxiliary logits) while they train; others a list or a mapping with `logits` or `out`.
    The first of a sequence is taken. Auxiliary heads then get no gradient, so DDP needs `find_unused_parameters` for them.

    Raises:
        UserError: the output holds no tensor in those places.
    """
    found = output
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("logits", "out") if key in found), None)
    elif isinstance(found, list | tuple) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        allowed = "logits, or a sequence that begins with them, or a mapping with logits or out"
        raise UserError("model", f"(returned {type(output).__name__})", allowed=allowed)
    return found
