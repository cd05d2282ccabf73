"""Many tests at once: adjusted p values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qexp.base.errors import UserError, choose

METHODS = ("holm", "benjamini_hochberg")


def adjust(p_values: Mapping[str, float], *, method: str = "holm") -> dict[str, float]:
    """Adjusted p values of a family of tests: each is compared with alpha itself.

    With p_(1) <= ... <= p_(m): `holm` gives max_{j <= i} min(1, (m - j + 1) p_(j)) and bounds the probability of any false
    finding, whatever the dependence; `benjamini_hochberg` gives min_{j >= i} min(1, m p_(j)/j) and bounds the expected share of
    false ones among the findings, for independent or positively dependent tests. Holm for planned comparisons,
    Benjamini-Hochberg to explore.

    Args:
        p_values: name -> p value, of everything that was tested, not only of what is printed.
        method: `holm` or `benjamini_hochberg`.

    Raises:
        UserError: a value outside 0 to 1, or an unknown method.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979); Benjamini
    and Hochberg, Controlling the false discovery rate, JRSS B 57 (1995).

    >>> {name: round(p, 3) for name, p in adjust({"w8": 0.03, "w4": 0.01}).items()}
    {'w8': 0.03, 'w4': 0.02}
    """
    choose("method", method, METHODS)
    for name, value in p_values.items():
        if not 0 <= value <= 1:  # also refuses NaN
            raise UserError(f"p value of {name}", value, allowed="a number from 0 to 1")
    if not p_values:
        return {}
    values = np.array(list(p_values.values()))
    if method == "holm":
        adjusted = holm_adjusted(values, np.ones(len(values)))
    else:
        from scipy.stats import false_discovery_control  # only now, as importing it takes a second

        adjusted = false_discovery_control(values)
    return dict(zip(p_values, map(float, adjusted), strict=True))


def holm_adjusted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p values, of tests that begin with different shares of alpha.

    Ordered by p/w: max_{j <= i} min(1, sum_{k >= j} w_(k) p_(j)/w_(j)), which is `adjust`'s where all weights w are equal.

    Rejected: statsmodels' `multipletests`, which gives the same bits and collects all of Python's garbage on every call, half the
    time of a small command.

    Args:
        values: [..., m] p values; each row is a family.
        weights: [m], positive.

    Source: Holm (1979), section 4.
    """
    order = np.argsort(values / weights, axis=-1, kind="stable")
    ordered = weights[order]
    left = np.cumsum(ordered[..., ::-1], axis=-1)[..., ::-1]  # of the tests that are not rejected yet
    steps = np.take_along_axis(values, order, axis=-1) * (left / ordered)
    adjusted = np.empty_like(steps)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(steps, axis=-1).clip(max=1.0), axis=-1)
    return adjusted
