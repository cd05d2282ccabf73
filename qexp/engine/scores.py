"""Metrics of stored predictions: arrays of torch or of numpy in, a value per image out. `qexp.config.metrics` has their rows.

The evaluator runs them on what it has just predicted, `verify` on what is stored of it. No torch here: reports load none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Answers(Protocol):
    """Predictions of N images, of the engine or as a report reads them."""

    @property
    def right(self) -> Any:
        """[N] bool, the first prediction is right."""

    @property
    def right5(self) -> Any:
        """[N] bool, one of the first five is right."""

    @property
    def log_prob(self) -> Any:
        """[N] float32, log-probability of the true class, nats."""


def prec1(answers: Answers, reference: Answers | None) -> Any:
    """[N] percent: 100 where the first prediction is right; a NaN among the logits is wrong."""
    return 100.0 * answers.right


def prec5(answers: Answers, reference: Answers | None) -> Any:
    """[N] percent: 100 where one of the first five predictions is right."""
    return 100.0 * answers.right5


def loss(answers: Answers, reference: Answers | None) -> Any:
    """[N] nats: cross-entropy."""
    return -answers.log_prob


def prec1_of_both(answers: Answers, reference: Answers) -> tuple[Any, Any]:
    """Two of [N] percent: `prec1` of this network and of the reference."""
    return prec1(answers, None), prec1(reference, None)


def difference(sums: Sequence[float], n: int) -> float:
    """The mean of the first less the mean of the second."""
    return sums[0] / n - sums[1] / n
