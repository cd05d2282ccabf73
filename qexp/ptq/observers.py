"""Observers: what is remembered of the values that pass an activation point, in fixed memory.

Two passes over the same images: `EndsObserver` sees each batch's range in the first, `HistogramObserver` counts within the range
that it found in the second. What either remembers is exact (extremes and integer counts), so observers of several ranks or halves
of the images `merge` into the one that saw all of it, bit for bit. Rejected: one pass with histograms that rescale
(`qexp.ptq.samples`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.calibrate import CalibrateSettings
from qexp.ptq.range_methods import Limits, find_in_sample, find_limits
from qexp.ptq.samples import Histogram, count_bins
from qexp.quant.ranges import check_finite, extremes

State = Mapping[str, Tensor]


class Observer(Protocol):
    """What watches one activation point; `axis` is the channel axis of its values, None where they share one range."""

    def observe(self, x: Tensor) -> None:
        """See some values of the current batch; a point that runs twice in a forward is seen twice."""

    def end_batch(self) -> None:
        """The batch is over."""

    def state(self) -> dict[str, Tensor]:
        """All that is remembered, on the CPU."""

    def merge(self, states: Sequence[State]) -> None:
        """Become the observer that saw what those of `states`, one for each rank in order, saw together."""

    def result(self, spec: QuantSpec) -> Limits:
        """Minimum and maximum for that grid, float32 on the CPU: 0-d where axis is None, else [channels]."""


class EndsObserver:
    """The ends of every batch: for `minmax` and `ema_minmax`, and for the first pass of the others.

    Batch b of the images is that of rank b % number of ranks, as `eval_batches` shards them: merging puts the batches of the
    ranks back into that order, so that the moving average, too, is a function of the global batches alone. Two numbers a batch
    and group.

    Args:
        settings: the method.
        axis: channel axis of the values; None where they share one range.
    """

    def __init__(self, settings: CalibrateSettings, axis: int | None = None) -> None:
        self.settings, self.axis = settings, axis
        self._open: Limits | None = None
        self._ends: list[Limits] = []  # [G] each

    def observe(self, x: Tensor) -> None:
        """Widen the batch's range. NaN is remembered and refused by `result`, on every rank alike.

        Raises:
            UserError: x is empty.
        """
        if x.numel() == 0:
            raise UserError("tensor", f"shape {list(x.shape)}", allowed="at least one element to take a range from")
        # Per tensor in the order of the indices: the order of memory, as `extremes` takes it, may end with the other sign of a
        # zero, and ranges are saved and hashed.
        low, high = torch.aminmax(x.detach()) if self.axis is None else extremes(x.detach(), self.axis)
        low, high = (end.reshape(-1).to(torch.float32, copy=True) for end in (low, high))
        if self._open is not None:
            low, high = torch.minimum(low, self._open[0]), torch.maximum(high, self._open[1])
        self._open = low, high

    def end_batch(self) -> None:
        """Close the batch; nothing where it saw nothing."""
        if self._open is not None:
            self._ends.append(self._open)
            self._open = None

    def state(self) -> dict[str, Tensor]:
        """Minima and maxima [batches, G]."""
        self.end_batch()
        if not self._ends:
            return {"minima": torch.empty(0, 0), "maxima": torch.empty(0, 0)}
        minima, maxima = (torch.stack([ends[side] for ends in self._ends]).cpu() for side in (0, 1))
        return {"minima": minima, "maxima": maxima}

    def merge(self, states: Sequence[State]) -> None:
        """The batches of the ranks, interleaved."""
        longest = max(len(state["minima"]) for state in states)
        self._ends, self._open = [], None
        for number in range(longest):
            self._ends += [(s["minima"][number], s["maxima"][number]) for s in states if number < len(s["minima"])]

    @property
    def seen(self) -> bool:
        """True once some value was."""
        return bool(self._ends) or self._open is not None

    def extremes(self) -> Limits:
        """The smallest and the largest value [G] of all batches; raises as `result`."""
        state = self.state()
        if not self._ends:
            raise UserError("tensor", "nothing", allowed="at least one batch to take a range from")
        low, high = state["minima"].amin(0), state["maxima"].amax(0)
        check_finite(low, high)
        return low, high

    def result(self, spec: QuantSpec) -> Limits:
        """By `settings.method` where that reads ends, else the extremes.

        Raises:
            UserError: nothing was seen, or NaN or infinity.
        """
        low, high = self.extremes()
        method = self.settings.method
        if method.reads == "ends":
            state = self.state()
            low, high = find_limits(method, (state["minima"], state["maxima"]), spec, self.settings)
        return (low.reshape(()), high.reshape(())) if self.axis is None else (low, high)


class HistogramObserver:
    """Counts within a range that is known, for the methods that read a sample.

    Args:
        extremes: minimum and maximum [G] of all values that will come.
        settings: method and number of bins.
        axis: of the groups.
    """

    def __init__(self, extremes: Limits, settings: CalibrateSettings, axis: int | None = None) -> None:
        self.settings, self.axis = settings, axis
        self._minimum, self._maximum = extremes
        self._edge = torch.maximum(self._minimum.abs(), self._maximum.abs())
        self._counts = torch.zeros(len(self._edge), 2 * settings.num_bins, dtype=torch.int64)
        self._zeros = torch.zeros(len(self._edge), dtype=torch.int64)

    def observe(self, x: Tensor) -> None:
        """Count values."""
        if self._edge.device != x.device:
            self._edge, self._counts, self._zeros = (held.to(x.device) for held in (self._edge, self._counts, self._zeros))
        counts, zeros = count_bins(x.detach(), self._edge, self.settings.num_bins, self.axis)
        self._counts += counts
        self._zeros += zeros

    def end_batch(self) -> None:
        """Counts know no batches."""

    def state(self) -> dict[str, Tensor]:
        """Counts int64 [G, 2 num_bins] and zeros int64 [G]."""
        return {"counts": self._counts.cpu(), "zeros": self._zeros.cpu()}

    def merge(self, states: Sequence[State]) -> None:
        """Sums of counts."""
        self._counts, self._zeros = (torch.stack([state[name] for state in states]).sum(0) for name in ("counts", "zeros"))
        self._edge = self._edge.cpu()

    @property
    def histogram(self) -> Histogram:
        """What was counted, on the CPU."""
        state = self.state()
        return Histogram(self._minimum.cpu(), self._maximum.cpu(), state["counts"], state["zeros"])

    def result(self, spec: QuantSpec) -> Limits:
        """By `settings.method`.

        Raises:
            UserError: the scheme has no range that this method finds.
        """
        low, high = find_in_sample(self.settings.method, self.histogram, spec, self.settings)
        return (low.reshape(()), high.reshape(())) if self.axis is None else (low, high)
