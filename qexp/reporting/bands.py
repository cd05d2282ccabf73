"""Bands around curves: how sure each point is."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from qexp.reporting.paired import wilson_of

MAX_BANDS = 6


def shaded(part: pd.DataFrame, curves: Mapping[str, pd.Series], plain: Mapping[str, pd.Series]) -> dict[str, pd.DataFrame]:
    """Low and high of the bands by curve: one standard deviation over seeds, else the interval of each accuracy.

    Of many curves only the float networks have one: bands that cover each other tell nothing.
    """
    named = {*plain, *(curves if len(curves) <= MAX_BANDS else ())}
    found = {}
    for name, rows in part[part["variant"].isin(named)].groupby("variant", sort=False):
        rows = rows.set_index("epoch").sort_index()
        if "sd" in rows and rows["sd"].notna().any():
            found[name] = pd.DataFrame({"low": rows["prec1"] - rows["sd"], "high": rows["prec1"] + rows["sd"]})
        else:
            intervals = [wilson_of(prec1, n) for prec1, n in zip(rows["prec1"], rows["n"], strict=True)]
            ends = {"low": [each.low for each in intervals], "high": [each.high for each in intervals]}
            found[name] = pd.DataFrame(ends, index=rows.index)
    return found


def draw_band(axes: Axes, bands: Mapping[str, pd.DataFrame], name: str, color: str) -> None:
    """The band of a curve, if it has one."""
    if name in bands:
        band = bands[name].astype(float)
        axes.fill_between(band.index, band["low"], band["high"], color=color, alpha=0.13, linewidth=0)
