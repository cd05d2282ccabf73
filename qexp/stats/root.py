"""Where a function of one variable is zero."""

from __future__ import annotations

from collections.abc import Callable

STEPS = 100  # that halve an interval at most
RELATIVE = 2**-50  # of the root: no interval is halved beyond the numbers there are


def bisect(function: Callable[[float], float], low: float, high: float, *, xtol: float) -> float:
    """A root of a continuous function by halving the interval that holds it.

    Rejected: scipy's `bisect`, which takes the same steps to the same bits: `scipy.optimize` takes half a second to import, of
    every command that trains or reports.

    Args:
        function: of opposite signs at the two ends, or zero at one.
        low: lower end.
        high: upper end.
        xtol: how far from the root the result may be, beside the rounding of doubles.

    Raises:
        ValueError: both ends have one sign.

    >>> round(bisect(lambda x: x * x - 2, 0.0, 2.0, xtol=1e-12), 9)
    1.414213562
    """
    at_low, at_high = function(low), function(high)
    if at_low == 0:
        return low
    if at_high == 0:
        return high
    if (at_low < 0) == (at_high < 0):
        raise ValueError(f"the function has one sign at both ends, {at_low} and {at_high}")
    width = high - low
    for _ in range(STEPS):
        width *= 0.5
        middle = low + width
        value = function(middle)
        if (value < 0) == (at_low < 0):
            low = middle
        if value == 0 or abs(width) < xtol + RELATIVE * abs(middle):
            break
    return middle
