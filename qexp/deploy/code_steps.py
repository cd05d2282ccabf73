"""How the codes of an activation point differ from others, counted in steps of their grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_FAR = 3  # steps: differences from here on are counted together


@dataclass(eq=False)
class StepCounts:
    """Differences of codes, over all batches added.

    Args:
        counts: how many are at most -3, -2, -1, 0, 1, 2, at least 3 steps.
        largest: absolute difference.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (2 * _FAR + 1))
    largest: int = 0

    def add(self, difference: Tensor) -> None:
        """Count differences in.

        Args:
            difference: codes less those that they are compared with, int32 of any shape.

        >>> counts = StepCounts()
        >>> counts.add(torch.tensor([0, 0, 1, -9], dtype=torch.int32))
        >>> counts.counts, counts.largest, counts.num_different
        ([1, 0, 0, 2, 1, 0, 0], 9, 2)
        """
        if not difference.numel():
            return
        low, high = (int(end) for end in torch.aminmax(difference))
        self.largest = max(self.largest, -low, high)
        if low == high == 0:
            self.counts[_FAR] += difference.numel()
            return
        bins = (difference.clamp(-_FAR, _FAR) + _FAR).flatten()
        for number, count in enumerate(torch.bincount(bins, minlength=2 * _FAR + 1).tolist()):
            self.counts[number] += count

    @property
    def num_codes(self) -> int:
        """How many were compared."""
        return sum(self.counts)

    @property
    def num_different(self) -> int:
        """How many of them differ."""
        return self.num_codes - self.counts[_FAR]

    @property
    def differ_pct(self) -> float:
        """Their share, percent."""
        return 100 * self.num_different / max(1, self.num_codes)


@dataclass(frozen=True)
class PointSteps:
    """The codes of one activation point at one fidelity stage, compared twice.

    End to end with the simulation's, where a code that rounds otherwise early on moves others behind it; and alone, with what the
    integer reference makes of the stage's own codes before the point.

    Args:
        stage: a fidelity stage.
        point: the activation point.
        num_codes: how many codes were compared.
        differ_pct: share of them that differ from the simulation's, percent.
        steps: how many differ by at most -3, -2, -1, 0, 1, 2, at least 3 steps, this stage's code less the simulation's.
        max_steps: largest difference.
        alone_differ_pct: as `differ_pct`, alone.
        alone_steps: as `steps`, alone.
        alone_max_steps: as `max_steps`, alone.
    """

    stage: str
    point: str
    num_codes: int
    differ_pct: float
    steps: Sequence[int]
    max_steps: int
    alone_differ_pct: float
    alone_steps: Sequence[int]
    alone_max_steps: int

    @classmethod
    def of(cls, stage: str, point: str, from_simulation: StepCounts, alone: StepCounts) -> PointSteps:
        """What was counted, as a row.

        Args:
            stage: a fidelity stage.
            point: the activation point.
            from_simulation: differences from the simulation's codes.
            alone: differences from the reference's, of the stage's own codes before the point.
        """
        return cls(
            stage, point, from_simulation.num_codes,
            from_simulation.differ_pct, tuple(from_simulation.counts), from_simulation.largest,
            alone.differ_pct, tuple(alone.counts), alone.largest,
        )  # fmt: skip
