"""What the rows of `qexp.config.correct` do to a copy on its way from the float network to the quantized one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qexp.base.text import Note, by_reason
from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import ADVISED_IMAGES, CorrectSettings
from qexp.config.outcome import Outcome
from qexp.nn.fold import Changed, ChannelStatistics, fold_batch_norm
from qexp.ptq.adaround import adaround_
from qexp.ptq.bias_absorption import absorb_high_biases
from qexp.ptq.bias_correction import BiasCorrection, correct_bias_, correct_bias_analytic_
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.ptq.equalization import equalize, rescale_channels
from qexp.ptq.error_feedback import error_feedback_
from qexp.ptq.range_methods import Limits
from qexp.ptq.rounded_layers import RoundedLayers


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
        notes: what else the reader should know.
        outcomes: row of each correction that had its turn -> what it did.
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
    outcomes: dict[str, Outcome] = field(default_factory=dict)
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

    def take(self, changed: Changed, done: int, unneeded: Sequence[Note] = ()) -> Outcome:
        """Go on with another float network, in which `done` batch norms or pairs of layers are changed."""
        assert self.rounded is None, "a correction that changes the float network comes before rounding, as its row must say"
        self.reference, self.statistics = changed.model, changed.statistics
        self.notes += [note for note in changed.notes if not isinstance(note, Note)]
        return Outcome.of(done, [note for note in changed.notes if isinstance(note, Note)], unneeded)


def fold_bn(copy: Copy) -> Outcome:
    """`qexp.nn.fold`."""
    folded = fold_batch_norm(copy.reference, copy.example)
    return copy.take(folded, len(folded.layers))


def rescale(copy: Copy) -> Outcome:
    """`qexp.ptq.equalization.rescale_channels`."""
    settings = copy.settings
    scaled = rescale_channels(copy.reference, copy.statistics, log10=settings.rescale_log10, seed=settings.rescale_seed)
    return copy.take(scaled, scaled.num_pairs)


def equalize_channels(copy: Copy) -> Outcome:
    """`qexp.ptq.equalization.equalize`."""
    equalized = equalize(copy.reference, copy.statistics)
    equal = [pair for pair in equalized.pairs if bool((pair.scale == 1).all())]
    why = "its channels have equal ranges, or none"
    return copy.take(equalized, len(equalized.pairs) - len(equal), [Note(f"{pair.first}, {pair.second}", why) for pair in equal])


def absorb_bias(copy: Copy) -> Outcome:
    """`qexp.ptq.bias_absorption`."""
    absorbed = absorb_high_biases(copy.reference, copy.statistics)
    return copy.take(absorbed, len(absorbed.pairs), absorbed.low)


def adaround(copy: Copy) -> Outcome:
    """`qexp.ptq.adaround`."""
    rounded = adaround_(
        copy.quantized, copy.reference, copy.specs, copy.images(), copy.settings, limits=copy.limits, seed=copy.seed
    )
    return _rounded(rounded)


def gptq(copy: Copy) -> Outcome:
    """`qexp.ptq.error_feedback`."""
    return _error_feedback(copy, "gptq")


def gpfq(copy: Copy) -> Outcome:
    """`qexp.ptq.error_feedback`."""
    return _error_feedback(copy, "gpfq")


def qronos(copy: Copy) -> Outcome:
    """`qexp.ptq.error_feedback`."""
    return _error_feedback(copy, "qronos")


def _error_feedback(copy: Copy, method: str) -> Outcome:
    asked = copy.settings.feedback_damping
    rounded = error_feedback_(
        copy.quantized, copy.reference, copy.specs, copy.images(), method, copy.settings, limits=copy.limits
    )
    raised = [row for row in rounded.rows if row.damping is not None and row.damping > asked]
    why = f"inputs follow from others, correct.feedback_damping={asked:g} was raised, to as much as"
    copy.notes += by_reason([Note(row.name, f"{method}: {why} {row.damping:g}") for row in raised], most=3)
    return _rounded(rounded)


def _rounded(rounded: RoundedLayers) -> Outcome:
    """Weights whose nearest codes nothing bettered needed no others."""
    nearest = [Note(row.name, "no rounding was better than the nearest") for row in rounded.rows if not row.flipped]
    return Outcome.of(len(rounded.rows) - len(nearest), rounded.notes, nearest)


def bias_empirical(copy: Copy) -> Outcome:
    """`qexp.ptq.bias_correction.correct_bias_`."""
    return _corrected(correct_bias_(copy.quantized, copy.reference, copy.images()))


def bias_analytic(copy: Copy) -> Outcome:
    """`qexp.ptq.bias_correction.correct_bias_analytic_`."""
    return _corrected(correct_bias_analytic_(copy.quantized, copy.reference, copy.statistics))


def _corrected(correction: BiasCorrection) -> Outcome:
    """Layers whose mean nothing had shifted needed no correction."""
    unshifted = [Note(name, "its mean was not shifted") for name, shift in correction.shifts.items() if not shift.any()]
    return Outcome.of(len(correction.shifts) - len(unshifted), correction.notes, unshifted)


def reestimate_bn(copy: Copy) -> Outcome:
    """`qexp.ptq.bn_reestimation`."""
    done = reestimate_batch_norm_(copy.quantized, copy.images())
    if 0 < done.num_images < ADVISED_IMAGES:
        copy.notes.append(f"batch norm re-estimated on {done.num_images} images; at least {ADVISED_IMAGES} are advised")
    return Outcome.of(done.num_norms, done.notes)
