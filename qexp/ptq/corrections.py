"""What the rows of `qexp.config.correct` do to a copy on its way from the float network to the quantized one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CorrectSettings
from qexp.nn.fold import Changed, ChannelStatistics, fold_batch_norm
from qexp.ptq.adaround import adaround_
from qexp.ptq.bias_absorption import absorb_high_biases
from qexp.ptq.bias_correction import correct_bias_, correct_bias_analytic_
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.ptq.equalization import equalize, rescale_channels
from qexp.ptq.range_methods import Limits


@dataclass
class Copy:
    """A quantized copy that is being made.

    Args:
        reference: the float network; a correction `before` rounding puts another one in its place and changes none.
        rounded: the copy with rounded weights, which corrections `after` rounding change; None before.
        settings: `correct.*`.
        seed: of the job.
        example: one image, on the networks' device.
        all_images: gives the calibration images, on the networks' device and on every rank all of them.
        specs: weight -> its quantizer, of the weights that were rounded.
        limits: weight -> what it was clipped to, where that is not all of its range.
        statistics: of the outputs of layers that took a batch norm, as the reference has them.
        notes: what corrections left alone, and why.
        reads_images: what the row of the present correction says.
    """

    reference: nn.Module
    rounded: nn.Module | None
    settings: CorrectSettings
    seed: int
    example: Tensor
    all_images: Callable[[], Sequence[Batch]]
    specs: Mapping[str, QuantSpec] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)
    statistics: Mapping[str, ChannelStatistics] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reads_images: bool = False

    def images(self) -> Sequence[Batch]:
        """The calibration images."""
        assert self.reads_images, "a correction that reads calibration images says so in its row"
        return self.all_images()

    @property
    def quantized(self) -> nn.Module:
        """The copy, once its weights are rounded."""
        assert self.rounded is not None, "a correction that changes the copy comes after rounding, as its row must say"
        return self.rounded

    def take(self, changed: Changed) -> None:
        """Go on with another float network."""
        assert self.rounded is None, "a correction that changes the float network comes before rounding, as its row must say"
        self.reference, self.statistics = changed.model, changed.statistics
        self.notes += changed.notes


def fold_bn(copy: Copy) -> None:
    """`qexp.nn.fold`."""
    copy.take(fold_batch_norm(copy.reference, copy.example))


def rescale(copy: Copy) -> None:
    """`qexp.ptq.equalization.rescale_channels`."""
    settings = copy.settings
    copy.take(rescale_channels(copy.reference, copy.statistics, log10=settings.rescale_log10, seed=settings.rescale_seed))


def equalize_channels(copy: Copy) -> None:
    """`qexp.ptq.equalization.equalize`."""
    copy.take(equalize(copy.reference, copy.statistics))


def absorb_bias(copy: Copy) -> None:
    """`qexp.ptq.bias_absorption`."""
    copy.take(absorb_high_biases(copy.reference, copy.statistics))


def adaround(copy: Copy) -> None:
    """`qexp.ptq.adaround`."""
    rounded = adaround_(
        copy.quantized, copy.reference, copy.specs, copy.images(), copy.settings, limits=copy.limits, seed=copy.seed
    )
    copy.notes += rounded.notes


def bias_empirical(copy: Copy) -> None:
    """`qexp.ptq.bias_correction.correct_bias_`."""
    copy.notes += correct_bias_(copy.quantized, copy.reference, copy.images()).notes


def bias_analytic(copy: Copy) -> None:
    """`qexp.ptq.bias_correction.correct_bias_analytic_`."""
    copy.notes += correct_bias_analytic_(copy.quantized, copy.reference, copy.statistics).notes


def reestimate_bn(copy: Copy) -> None:
    """`qexp.ptq.bn_reestimation`."""
    copy.notes += reestimate_batch_norm_(copy.quantized, copy.images())
