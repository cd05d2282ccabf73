"""Candidates by size and by what they lose, and how many images each decision took."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from qexp.analysis.shrink_results import Raced, Shrunk
from qexp.base.text import MIB
from qexp.reporting.figures.style import MARKERS, PALETTE, drawing

OUTCOMES = {"passed": PALETTE[2], "failed": PALETTE[1], "given up": PALETTE[5], "undecided": PALETTE[6]}
SHOWN_MARGINS = 6  # losses of more margins than these stand at the lower edge


def draw(result: Shrunk) -> Iterator[tuple[str, Figure]]:
    """The figure with the stem of its file."""
    if any(raced.outcome != "not run" for raced in result.raced):
        yield "race", race(result)


def race(result: Shrunk) -> Figure:
    """Above each candidate's change with its interval, by size; below the images that its decision took."""
    with drawing(6.4, 4.8, f"{result.subject}: {result.label}, {result.images}") as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        edge = -SHOWN_MARGINS * result.max_loss
        for number, (outcome, color) in enumerate(OUTCOMES.items()):
            chosen = [raced for raced in result.raced if raced.outcome == outcome]
            if not chosen:
                continue
            sizes = [raced.size_bytes / MIB for raced in chosen]
            changes = [max(raced.difference or 0.0, edge) for raced in chosen]
            upper.errorbar(
                sizes, changes, yerr=_ends(chosen, changes, edge), color=color, marker=MARKERS[number], linestyle="",
                markersize=5, elinewidth=0.8, label=outcome,
            )  # fmt: skip
            lower.plot(sizes, [raced.n for raced in chosen], color=color, marker=MARKERS[number], linestyle="", markersize=5)
        if result.smallest is not None:
            at = (result.smallest.size_bytes / MIB, result.smallest.difference or 0.0)
            upper.plot(*at, marker="o", markersize=13, markerfacecolor="none", color="black", linestyle="", label="chosen")
        upper.axhline(-result.max_loss, color="#7F7F7F", linewidth=0.8, linestyle="--")
        upper.set_ylim(edge * 1.05, result.max_loss * 2)
        upper.set_ylabel(f"change of Prec@1, points\n(at most {-edge:g} shown)")
        upper.legend(fontsize=7, loc="upper left")
        lower.set_yscale("log")
        lower.set_ylabel("images")
        lower.set_xlabel("MiB of the state dict")
    return figure


def _ends(chosen: list[Raced], changes: list[float], edge: float) -> list[list[float]]:
    """Lengths of the intervals below and above the points that are shown."""
    below, above = [], []
    for raced, change in zip(chosen, changes, strict=True):
        low, high = (change, change) if raced.interval is None else (raced.interval.low, raced.interval.high)
        below.append(max(change - max(low, edge), 0.0))
        above.append(max(high - change, 0.0))
    return [below, above]
