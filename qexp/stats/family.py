"""Many comparisons at once: adjusted p values, and which variants cannot be told from the best or from a reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from qexp.base.checks import check_range
from qexp.base.errors import UserError, choose
from qexp.stats.inputs import as_correct, check_same_images, check_same_length, check_share
from qexp.stats.paired import mcnemar

METHODS = ("holm", "benjamini_hochberg")
MAX_NAMES = 8  # of a sentence


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How variants compare with one of them, the reference.

    Args:
        reference: name of the variant that the others are compared with.
        is_best: the reference was chosen for having the highest accuracy on these images.
        n: images.
        alpha: family-wise error rate.
        num_tests: size of the family that Holm's correction is over.
        accuracy: name -> percent, of all.
        p_values: name -> adjusted p value of its comparison with the reference, of the others.
    """

    reference: str
    is_best: bool
    n: int
    alpha: float
    num_tests: int
    accuracy: dict[str, float]
    p_values: dict[str, float]

    @property
    def differences(self) -> dict[str, float]:
        """Name -> accuracy minus the reference's, points, of the others."""
        return {name: self.accuracy[name] - self.accuracy[self.reference] for name in self.p_values}

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """The others that are not shown to differ from the reference, the most accurate first."""
        return self._others(different=False)

    @property
    def different(self) -> tuple[str, ...]:
        """The others that differ from the reference, the most accurate first."""
        return self._others(different=True)

    def _others(self, *, different: bool) -> tuple[str, ...]:
        names = (name for name, p_value in self.p_values.items() if (p_value <= self.alpha) == different)
        return tuple(sorted(names, key=self.accuracy.__getitem__, reverse=True))


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
    adjusted = _holm(values) if method == "holm" else false_discovery_control(values)
    return dict(zip(p_values, map(float, adjusted), strict=True))


def _holm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p values.

    Rejected: statsmodels' `multipletests`, which gives the same bits and collects all of Python's garbage on every call, half the
    time of a small command.
    """
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    return adjusted


def indistinguishable_from_best(
    correct: Mapping[str, ArrayLike], *, index: Mapping[str, ArrayLike] | None = None, alpha: float = 0.05
) -> Standing:  # fmt: skip
    """Which variants cannot be told from the most accurate one.

    Exact McNemar tests of all k (k - 1)/2 pairs, Holm over all of them: with probability 1 - alpha or more no variant
    is called different from the best that is truly equal to it. The best is chosen by the data that test it, so that the k - 1
    comparisons with it are no family fixed in advance; Holm over these alone errs in 11 % of sweeps of 10 equal variants and
    in 17 % of 20, at alpha 0.05; over all pairs in 3 and 2 %.

    Args:
        correct: name -> [n] bool. Of equal accuracies the first is the best.
        index: name -> [n] integers, which images these are.
        alpha: family-wise error rate.

    Raises:
        UserError: no variants, no images, or not the same ones.
    """
    arrays, n = _arrays(correct, index, alpha)
    best = max(arrays, key=lambda name: np.count_nonzero(arrays[name]))
    return _standing(arrays, n, best, list(combinations(arrays, 2)), is_best=True, alpha=alpha)


def indistinguishable_from(
    reference: str, correct: Mapping[str, ArrayLike], *, index: Mapping[str, ArrayLike] | None = None, alpha: float = 0.05
) -> Standing:  # fmt: skip
    """Which variants cannot be told from a reference that was named in advance, the float network say.

    Exact McNemar tests of the k - 1 others against it, Holm over these.

    Args:
        reference: one of the names.
        correct: as in `indistinguishable_from_best`.
        index: as in `indistinguishable_from_best`.
        alpha: family-wise error rate.

    Raises:
        UserError: an unknown reference, no images, or not the same ones.
    """
    choose("reference", reference, correct)
    arrays, n = _arrays(correct, index, alpha)
    pairs = [(reference, name) for name in arrays if name != reference]
    return _standing(arrays, n, reference, pairs, is_best=False, alpha=alpha)


def in_words(standing: Standing) -> str:
    """The standing as one sentence, with differences in points.

    >>> import numpy as np
    >>> images = np.arange(1000)
    >>> print(in_words(indistinguishable_from("fp32", {"fp32": images < 900, "w8": images < 898, "w2": images < 700})))
    ... # doctest: +NORMALIZE_WHITESPACE
    1 of 2 cannot be told from fp32 (90.00 %): w8 (-0.20); different: w2 (-20.00) (n = 1000, exact McNemar,
    Holm over 2 tests, alpha 0.05).
    """
    others, alike, different = len(standing.p_values), standing.indistinguishable, standing.different
    name = f"{standing.reference}{', the best' if standing.is_best else ''} ({standing.accuracy[standing.reference]:.2f} %)"
    if not others:
        return f"Nothing is compared with {name} (n = {standing.n})."
    tests = f"{standing.num_tests} test{'s' * (standing.num_tests > 1)}"
    how = f"n = {standing.n}, exact McNemar, Holm over {tests}, alpha {standing.alpha:g}"
    count = f"{len(alike)} of {others}"
    parts = [f"{count} cannot be told from {name}" + (f": {_listed(standing, alike)}" if alike else "")]
    if different:
        parts.append(f"{'worse' if standing.is_best else 'different'}: {_listed(standing, different)}")
    return f"{'; '.join(parts)} ({how})."


def _arrays(
    correct: Mapping[str, ArrayLike], index: Mapping[str, ArrayLike] | None, alpha: float
) -> tuple[dict[str, NDArray[np.bool_]], int]:  # fmt: skip
    """Correctness by name, and the number of images, all checked."""
    check_share("alpha", alpha)
    check_range("number of variants", len(correct), 1)
    arrays = {name: as_correct(name, values) for name, values in correct.items()}
    n = check_same_length({name: len(values) for name, values in arrays.items()})
    if index is not None:
        for name in arrays:
            choose("index", name, index)
        check_same_images({name: index[name] for name in arrays}, n)
    return arrays, n


def _standing(
    arrays: dict[str, NDArray[np.bool_]], n: int, reference: str, pairs: list[tuple[str, str]], *, is_best: bool, alpha: float
) -> Standing:  # fmt: skip
    """The adjusted tests of `pairs`; their family is what Holm's correction is over."""
    row_of = {name: number for number, name in enumerate(arrays)}
    right = np.stack(list(arrays.values())).astype(np.float64)  # counts of images are exact in it, and it multiplies fast
    only = right @ (1 - right).T  # [k, k], images that the row's variant gets right and the column's wrong
    rows, columns = np.array([[row_of[name] for name in pair] for pair in pairs], dtype=int).reshape(-1, 2).T
    p_values = mcnemar(only[rows, columns], only[columns, rows])
    adjusted = adjust({f"{number}": float(p_value) for number, p_value in enumerate(p_values)})
    against_reference = {}
    for pair, p_value in zip(pairs, adjusted.values(), strict=True):
        if reference in pair:
            against_reference[pair[0] if pair[1] == reference else pair[1]] = p_value
    accuracy = {name: 100 * int(np.count_nonzero(values)) / n for name, values in arrays.items()}
    return Standing(
        reference=reference,
        is_best=is_best,
        n=n,
        alpha=alpha,
        num_tests=len(pairs),
        accuracy=accuracy,
        p_values=against_reference,
    )


def _listed(standing: Standing, names: Iterable[str]) -> str:
    """Names with their differences, the first few of many."""
    variants = [f"{name} ({standing.differences[name]:+.2f})" for name in names]
    num_left_out = len(variants) - MAX_NAMES
    return ", ".join(variants) if num_left_out <= 0 else f"{', '.join(variants[:MAX_NAMES])} and {num_left_out} more"
