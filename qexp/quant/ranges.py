"""The range of a tensor, and the refusal of tensors that have none.

Axis None is per tensor: minimum and maximum are 0-d. Otherwise they are [channels], one pair for each index along the axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.quant.blocks import memory_order


class ConstantTensorError(UserError):
    """A tensor without a range: all elements equal, so that a quantizer that divides by the range is undefined on it.

    Args:
        value: of the elements.
        allowed: as of `UserError`.
    """

    def __init__(self, value: float, *, allowed: str) -> None:
        super().__init__("tensor", f"constant {value:g}", allowed=allowed, remedy="Leave the tensor unquantized.")


def min_max(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest element, per tensor or per channel.

    Args:
        x: any shape and real dtype.
        axis: channel axis, negative from the end; None per tensor.

    Returns:
        minimum, maximum in x's dtype: 0-d, or [channels].

    Raises:
        UserError: x is empty, or holds NaN or infinity; both would otherwise turn into codes in silence.

    >>> min_max(torch.tensor([[1.0, 3.0], [-2.0, 0.0]]), axis=0)
    (tensor([ 1., -2.]), tensor([3., 0.]))
    """
    if x.numel() == 0:
        raise UserError("tensor", f"shape {list(x.shape)}", allowed="at least one element to take a range from")
    minimum, maximum = extremes(x, axis)
    check_finite(minimum, maximum)
    return minimum, maximum


def extremes(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """`min_max` without its checks: NaN anywhere in x reaches both ends. They may be x itself, where x is [channels].

    Args:
        x: any shape and real dtype, not empty.
        axis: channel axis, negative from the end; None per tensor.
    """
    if axis is None or x.dim() == 0:
        # In memory order: on channels-last tensors torch.aminmax takes 40 times as long.
        order = None if x.is_contiguous() else memory_order(x)
        minimum, maximum = torch.aminmax(x if order is None else x.permute(order))
        return (minimum, maximum) if axis is None else (minimum.reshape(1), maximum.reshape(1))
    # amin and amax apart: torch.aminmax(dim=...) is not vectorized on the CPU and takes 15 times as long.
    others = [dim for dim in range(x.dim()) if dim != axis % x.dim()]
    return (torch.amin(x, dim=others), torch.amax(x, dim=others)) if others else (x, x)


def check_not_zero(minimum: Tensor, maximum: Tensor) -> None:
    """Raise ConstantTensorError where the whole range is zero, so that nothing is left to scale by."""
    if not (minimum.any() or maximum.any()):
        raise ConstantTensorError(0.0, allowed="an element other than zero")


def check_limits(limits: tuple[Tensor, Tensor], num_groups: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Limits given from outside as float32 on x's device: 0-d for one group, [num_groups] for several.

    Raises:
        UserError: another number of them, NaN or infinity, or a minimum above its maximum.
    """
    ends = [torch.as_tensor(end, dtype=torch.float32, device=x.device) for end in limits]
    for end in ends:
        if end.numel() != num_groups or end.dim() > 1:
            raise UserError("limits", list(end.shape), allowed=f"one number for each of the tensor's {num_groups} groups")
    minimum, maximum = ends if num_groups > 1 else [end.reshape(()) for end in ends]
    if not (_all_finite(minimum) and _all_finite(maximum)):
        raise UserError("limits", "hold NaN or infinity", allowed="finite numbers")
    if bool((minimum > maximum).any()):
        raise UserError("limits", "minimum above maximum", allowed="a minimum that is at most the maximum")
    return minimum, maximum


def check_finite(minimum: Tensor, maximum: Tensor) -> None:
    """Raise UserError unless both ends of the range are finite; NaN anywhere in a tensor reaches its range."""
    if not (_all_finite(minimum) and _all_finite(maximum)):
        raise UserError("tensor", "holds NaN or infinity", allowed="finite elements")


def check_span(minimum: Tensor, maximum: Tensor) -> Tensor:
    """Take max - min, for a map that divides by it.

    Raises:
        ConstantTensorError: all elements are equal. One constant channel among others passes, and so does a tensor whose
            channels are constants that differ.
        UserError: the difference overflows.
    """
    span = maximum - minimum
    low, high = (float(minimum), float(maximum)) if not span.dim() else (float(minimum.min()), float(maximum.max()))
    if low == high:
        raise ConstantTensorError(low, allowed="at least two different elements")
    if not _all_finite(span):
        raise UserError("tensor", "max - min overflows", allowed=f"a range that {span.dtype} holds")
    return span


def _all_finite(x: Tensor) -> bool:
    return math.isfinite(x) if x.dim() == 0 else bool(torch.isfinite(x).all())
