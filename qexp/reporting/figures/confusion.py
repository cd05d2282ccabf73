"""A matrix of counts as a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from qexp.reporting.figures.layers import heat_map
from qexp.reporting.frames.compared import Matrix


def draw_matrix(matrix: Matrix) -> Figure:
    """Counts off the diagonal in colours; those on it, which are far larger, in figures alone.

    Args:
        matrix: of `qexp.reporting.statistics.asked`.
    """
    counts = matrix.counts.astype(float)
    off = counts.where(~np.eye(len(counts), dtype=bool))
    texts = matrix.counts.map(lambda count: str(count) if count else "")
    limits = (0.0, max(float(np.nanmax(off.to_numpy(), initial=0.0)), 1.0))
    labels = {"x_label": matrix.column_label, "y_label": matrix.row_label}
    return heat_map(off, texts, limits, "images", matrix.heading, **labels)
