"""What `task=shrink` found: every candidate's race, the smallest network that passed, and what confirmed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qexp.analysis.results import Analysis
from qexp.stats.interval import Interval

Outcome = Literal["passed", "failed", "given up", "undecided", "not run"]


@dataclass(frozen=True, kw_only=True)
class Raced:
    """One candidate against the float network, block by block on the images that the choice is made on.

    Args:
        label: of the way to quantize.
        policy: `uniform`, `first_last` or `mixed`.
        scheme: of the weights.
        granularity: of the weights.
        corrections: as they were listed.
        bits: of the weights; of `mixed` on average.
        size_bytes: of the state dict.
        outcome: `passed`: it loses less than the margin; `failed`: it does not; `given up`: it could no longer pass;
            `undecided` after all images; `not run`: a smaller one had passed.
        n: images that it took.
        n10: of them, right in float and wrong here.
        n01: of them, wrong in float and right here.
        difference: 100 (n01 - n10)/n, points; of a race that ended early it exaggerates.
        interval: 90 %, of the true difference, which may be looked at after any block: each end is a one-sided 95 % bound, so
            that it agrees with the outcome; None where it was not run.
        p_value: of a loss of the margin or more; valid at any n.
        widths: layer -> width, of `mixed`.
    """

    label: str
    policy: str
    scheme: str
    granularity: str
    corrections: str
    bits: float
    size_bytes: int
    outcome: Outcome = "not run"
    n: int = 0
    n10: int = 0
    n01: int = 0
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    widths: dict[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What else of a checkpoint the images of a test tested, all or some of them.

    Args:
        networks: labels of other networks.
        margins: others that this network was tested at, points.
        counts: images of other tests of this network at this margin.
    """

    networks: tuple[str, ...] = ()
    margins: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The one look at the images that the claim is about.

    Args:
        label: of the network that was chosen, by what its corrections did.
        alarms: what is suspicious of it.
        images: in words.
        n: images.
        n10: right in float and wrong in the network that was chosen.
        n01: wrong in float and right there.
        float_prec1: of the float network, percent.
        prec1: of the network that was chosen, percent.
        difference: points.
        interval: of the difference; its lower end is the one-sided 95 % bound.
        loss_bound: the largest loss that the images allow at 95 %, points.
        p_value: of a loss of the margin or more.
        holds: the loss is below the margin.
        earlier: what else of this checkpoint the same images tested.
    """

    label: str
    alarms: tuple[str, ...]
    images: str
    n: int
    n10: int
    n01: int
    float_prec1: float
    prec1: float
    difference: float
    interval: Interval
    loss_bound: float
    p_value: float
    holds: bool
    earlier: Earlier


@dataclass(frozen=True, kw_only=True)
class Shrunk(Analysis):
    """The smallest network that loses less than a margin.

    Args:
        images: what candidates raced on.
        max_loss: the margin, points.
        float_bytes: of the float state dict.
        raced: all candidates, by size, then those with bits per layer in the order of the search.
        smallest: the smallest that passed; None where none did.
        uniform: the smallest that passed of the candidates without bits per layer.
        confirmation: of the smallest; None where there is none.
        used: images that networks were run on, the float network's included.
        full: images that all of the grid and the float network would have taken.
        evaluate: the command that scores the network again; empty where there is none.
        export: the command that writes it to a file; empty where a file cannot hold it.
        no_export: why not.
    """

    images: str
    max_loss: float
    float_bytes: int
    raced: tuple[Raced, ...]
    smallest: Raced | None
    uniform: Raced | None
    confirmation: Confirmation | None
    used: int
    full: int
    evaluate: str = ""
    export: str = ""
    no_export: str = ""
