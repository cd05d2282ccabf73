"""What a range is taken from: all values at hand (`Rows`), or their counts in fixed memory (`Histogram`).

Both are groups with a range of their own and answer the same questions, so that each method is written once.
Legend: G groups, N values of each, B bins on each side of zero, P points.

A histogram spans [-edge, edge], edge = max|x|, in 2B even bins, so that zero is between two bins and magnitudes are bins added in
pairs; exact zeros are counted apart, since behind a ReLU they outnumber the rest and most grids hold them without error. Counts
are integers: those of two halves of the images add up to those of the whole, bit for bit. Rejected: a histogram that rescales
when a value falls outside, as torch's, whose result depends on the order of batches and on who saw which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qexp.quant.affine import expand
from qexp.quant.ranges import min_max

_POINTS_PER_BIN = 4
_GOLDEN = 0.6180339887498949  # its multiples modulo 1 fill [0, 1) evenly, so that points do not beat with a grid's steps


class Sample(Protocol):
    """Values of G groups."""

    @property
    def minimum(self) -> Tensor:
        """[G] float32, exact."""

    @property
    def maximum(self) -> Tensor:
        """[G] float32, exact."""

    def points(self) -> tuple[Tensor, Tensor | None]:
        """Float32 [G, P] and how much each counts, float64 [G, P]; None where all count 1."""

    def quantile(self, share: float) -> Tensor:
        """[G] float32, below which `share` (0 to 1) of the values lie."""

    def magnitudes(self) -> Sample:
        """The same of |x|."""

    def histogram(self, num_bins: int) -> Histogram:
        """As counts."""


@dataclass(frozen=True, eq=False)
class Rows:
    """All values at hand; build it with `of`.

    Args:
        values: float32 [G, N].
        minimum: [G], of the values.
        maximum: [G], of the values.
    """

    values: Tensor
    minimum: Tensor
    maximum: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Rows:
        """Of float32 [G, N]; UserError where it is empty or not finite."""
        return cls(values, *min_max(values, 0))

    def points(self) -> tuple[Tensor, None]:
        """The values themselves."""
        return self.values, None

    def quantile(self, share: float) -> Tensor:
        """As torch.quantile, interpolated linearly, without its limit on N."""
        ordered = self.values.sort(1).values
        position = share * (ordered.shape[1] - 1)
        below = int(position)
        above = min(below + 1, ordered.shape[1] - 1)
        return torch.lerp(ordered[:, below].double(), ordered[:, above].double(), position - below).float()

    def magnitudes(self) -> Rows:
        """|x|."""
        return Rows.of(self.values.abs())

    def histogram(self, num_bins: int) -> Histogram:
        """Counts in bins."""
        edge = torch.maximum(self.minimum.abs(), self.maximum.abs())
        return Histogram(self.minimum, self.maximum, *count_bins(self.values, edge, num_bins, 0))


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts in even bins over [-edge, edge].

    Args:
        minimum: float32 [G], of the values.
        maximum: float32 [G], of the values.
        counts: int64 [G, 2B], exact zeros left out.
        zeros: int64 [G].
    """

    minimum: Tensor
    maximum: Tensor
    counts: Tensor
    zeros: Tensor

    @property
    def num_bins(self) -> int:
        """On each side of zero."""
        return self.counts.shape[1] // 2

    @property
    def edge(self) -> Tensor:
        """[G] float32, max|x|."""
        return torch.maximum(self.minimum.abs(), self.maximum.abs())

    def points(self) -> tuple[Tensor, Tensor]:
        """Some points in every bin that some group uses, within the group's range, and one for the zeros."""
        positions = torch.arange(self.counts.shape[1] * _POINTS_PER_BIN, dtype=torch.float64, device=self.counts.device)
        positions = (positions + (positions * _GOLDEN) % 1) / (self.num_bins * _POINTS_PER_BIN) - 1
        weights = (self.counts.double() / _POINTS_PER_BIN).repeat_interleave(_POINTS_PER_BIN, 1)
        used = weights.any(0)
        values = torch.minimum(self.edge.double()[:, None] * positions[used], self.maximum.double()[:, None])
        values = torch.maximum(values, self.minimum.double()[:, None]).float()
        zero = values.new_zeros(len(values), 1)
        return torch.cat([values, zero], 1), torch.cat([weights[:, used], self.zeros.double()[:, None]], 1)

    def quantile(self, share: float) -> Tensor:
        """Values are taken to lie evenly in their bin: off by a bin's width at most."""
        bins = self.num_bins
        steps = torch.arange(-bins, bins + 1, dtype=torch.float64, device=self.counts.device) / bins
        # The cumulated count over the bins' ends, with a jump at zero.
        ends = torch.cat([steps[: bins + 1], steps[bins:]])
        zeros = self.zeros[:, None]
        jumps = torch.cat([torch.zeros_like(zeros), self.counts[:, :bins], zeros, self.counts[:, bins:]], 1)
        reached = jumps.cumsum(1).double()
        wanted = share * reached[:, -1:]
        after = torch.searchsorted(reached, wanted).clamp(1, reached.shape[1] - 1)
        low, high = reached.gather(1, after - 1), reached.gather(1, after)
        part = ((wanted - low) / (high - low).clamp(min=1)).clamp(0, 1)
        quantile = torch.lerp(ends[after - 1], ends[after], part)[:, 0] * self.edge.double()
        return torch.minimum(torch.maximum(quantile.float(), self.minimum), self.maximum)

    def magnitudes(self) -> Histogram:
        """The bins of both sides added in pairs."""
        bins = self.num_bins
        folded = self.counts[:, bins:] + self.counts[:, :bins].flip(1)
        counts = torch.cat([torch.zeros_like(folded), folded], 1)
        both = (self.minimum <= 0) & (self.maximum >= 0)
        least = torch.where(both, torch.zeros_like(self.edge), torch.minimum(self.minimum.abs(), self.maximum.abs()))
        return Histogram(least, self.edge, counts, self.zeros)

    def histogram(self, num_bins: int) -> Histogram:
        """Itself, whatever its number of bins."""
        return self


def count_bins(x: Tensor, edge: Tensor, num_bins: int, axis: int | None) -> tuple[Tensor, Tensor]:
    """Counts of the nonzero values in 2 num_bins even bins over [-edge, edge], and of the zeros.

    bin = clamp(floor(x * (num_bins / edge) + num_bins), 0, 2 num_bins - 1), in float32, for each value alone: how values are cut
    into batches changes nothing.

    Args:
        x: any shape, finite.
        edge: [G]; values beyond go to the last bins.
        num_bins: on each side of zero.
        axis: of the G groups; None for one.

    Returns:
        counts int64 [G, 2 num_bins], zeros int64 [G].
    """
    x, groups = x.float(), edge.numel()
    factor = (num_bins / edge.double()).clamp(max=torch.finfo(torch.float32).max)
    factor = torch.where(edge > 0, factor, torch.zeros_like(factor)).float()
    factor = factor.reshape(()) if axis is None else _along(axis, factor, x)
    zero_bin = torch.full((), float(num_bins), device=x.device)
    bins = torch.addcmul(zero_bin, x, factor).floor_().clamp_(0, 2 * num_bins - 1).long()
    if axis is not None:
        bins += _along(axis, torch.arange(groups, device=x.device) * (2 * num_bins), x)
    counts = torch.bincount(bins.flatten(), minlength=groups * 2 * num_bins).view(groups, 2 * num_bins)
    is_zero = x == 0
    zeros = is_zero.sum().view(1) if axis is None else is_zero.sum([dim for dim in range(x.dim()) if dim != axis % x.dim()])
    counts[:, num_bins] -= zeros
    return counts, zeros


def _along(axis: int, values: Tensor, x: Tensor) -> Tensor:
    """Values of the groups, shaped to broadcast against x along its axis."""
    shaped = expand(values, axis, x)
    assert isinstance(shaped, Tensor)
    return shaped
