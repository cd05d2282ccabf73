"""Which measure can be trusted to name the layers that quantization hurts: rank correlations, and what trusting it costs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.stats import ConstantInputWarning, kendalltau, spearmanr

from qexp.analysis.results import LayerLoss, Trust
from qexp.config.analyze import MEASURED, PROXIES

PROTECTED = 0.25  # share of the layers that stay float where a ranking is judged by what it protects


def trust(layers: Sequence[LayerLoss]) -> tuple[Trust, ...]:
    """Every measure against everything measured, width by width; a measure is not held against itself.

    Args:
        layers: of one network, any widths.
    """
    trusts = []
    for bits in sorted({loss.bits for loss in layers}):
        rows = [loss for loss in layers if loss.bits == bits]
        pairs = ((measure, truth) for measure in ("kl", "loss", *PROXIES) for truth in MEASURED if measure != truth)
        for measure, truth in pairs:
            known = [row for row in rows if row.score(measure) is not None]
            ours = np.array([row.score(measure) for row in known], dtype=np.float64)
            theirs = np.array([row.score(truth) for row in known], dtype=np.float64)
            trusts.append(Trust(bits, measure, truth, len(known), *correlations(ours, theirs), regret(ours, theirs)))
    return tuple(trusts)


def correlations(ours: np.ndarray, theirs: np.ndarray) -> tuple[float | None, float | None]:
    """Spearman's rho and Kendall's tau-b; None where fewer than three pairs are finite or one side is constant.

    Args:
        ours: [layers] scores of one measure.
        theirs: [layers] scores of another.

    >>> correlations(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3]))
    (0.8, 0.667)
    """
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if finite.sum() < 3:
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        coefficients = (spearmanr(ours[finite], theirs[finite]).statistic, kendalltau(ours[finite], theirs[finite]).statistic)
    rho, tau = (round(float(coefficient), 3) if np.isfinite(coefficient) else None for coefficient in coefficients)
    return rho, tau


def regret(ours: np.ndarray, theirs: np.ndarray, share: float = PROTECTED) -> float | None:
    """What it costs to protect the layers that `ours` calls worst instead of those that `theirs` does, percent.

    100 (sum of theirs over the layers left to quantize - the least such sum) / (sum of theirs over all).

    Args:
        ours: [layers] scores of the measure that is trusted, more is worse.
        theirs: [layers] measured scores, more is worse.
        share: of the layers that are protected, at least one.

    >>> regret(np.array([3.0, 2, 1, 0]), np.array([1.0, 7, 1, 1]))
    60.0
    """
    total = theirs.sum() if len(theirs) else 0.0
    if not (np.isfinite(ours).all() and np.isfinite(total)) or total <= 0:
        return None
    count = max(1, round(share * len(ours)))
    left_over = [theirs.sum() - theirs[np.argsort(-by, kind="stable")[:count]].sum() for by in (ours, theirs)]
    return float(100 * (left_over[0] - left_over[1]) / total)
