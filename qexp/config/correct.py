"""The corrections of a quantized network, one row each in the order of the work, and their settings; torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from qexp.base.catalog import Catalog, Info
from qexp.base.checks import Count, NotNegative, Positive, Seed, Share, check_bounds
from qexp.base.errors import UserError, choose
from qexp.base.text import by_reason
from qexp.config.later import later
from qexp.config.outcome import Outcome

ADVISED_IMAGES = 1000  # fewer leave BN's re-estimated statistics noisy


@dataclass(frozen=True, kw_only=True)
class CorrectionInfo(Info):
    """One correction; its code is `correct(copy)`, which changes a `qexp.ptq.corrections.Copy` and returns the `Outcome`.

    Args:
        switch: the setting of `correct.*` that asks for it.
        choice: the value of the switch that does; None where any but false and 0 does.
        step: on the float network `before` its weights are rounded, or on the quantized one `after`.
        needs_folding: only with `correct.fold_bn`.
        needs_images: it reads calibration images.
        scales_channels: ranges that batch norm tells no longer hold.
        draws: it reads the job's `seed`.
        chooses_codes: it says which code each weight gets, so that no other that does can be on.
        settings: of `correct.*`, those that are part of a variant's key only while it is on. A new correction names all of its
            own, the switch too, so that keys of before stay.
        label: what tables call it, of its settings; None for its name.
        did: what it does to those that it is for: `folded {} batch norms`, where `{}` counts them.
        selective: it is meant for those that fit, so that the others are no alarm.
    """

    switch: str
    choice: str | None
    step: Literal["before", "after"]
    needs_folding: bool
    needs_images: bool
    scales_channels: bool
    draws: bool
    chooses_codes: bool
    settings: tuple[str, ...]
    label: Callable[[CorrectSettings], str] | None
    did: str
    selective: bool

    def is_alarm(self, outcome: Outcome) -> bool:
        """True where a number is not what the switch lets one think."""
        return not outcome.done or (bool(outcome.declined) and not self.selective)

    def sentence(self, outcome: Outcome) -> str:
        """`fold_bn folded 26 of 49 batch norms: not folded, it keeps no running statistics (bn1; bn2; bn3; ... 23 in all)`."""
        counted = f"{self.name} {self.did.format(f'{outcome.done} of {outcome.count}')}"
        why = by_reason(outcome.left, most=3) or ([] if outcome.count else ["there are none"])
        return ": ".join([counted, *(["; ".join(why)] if why else [])])

    def is_on(self, settings: CorrectSettings) -> bool:
        """True where the settings ask for it."""
        value: object = getattr(settings, self.switch)
        return bool(value) if self.choice is None else value == self.choice


def _rescale_label(settings: CorrectSettings) -> str:
    return f"rescale_{settings.rescale_log10:g}" + (f"_seed{settings.rescale_seed}" if settings.rescale_seed else "")


def _feedback_label(name: str, *, damped: bool) -> Callable[[CorrectSettings], str]:
    """`gptq`, `qronos act_order`, `gptq damping_0.1`."""

    def label(settings: CorrectSettings) -> str:
        damping = settings.feedback_damping
        words = [f"damping_{damping:g}"] if damped and damping != CorrectSettings.feedback_damping else []
        return " ".join([name, *words, *(["act_order"] if settings.feedback_act_order else [])])

    return label


CORRECTIONS: Catalog[CorrectionInfo] = Catalog(
    "correct",
    CorrectionInfo,
    [
        CorrectionInfo(
            name="fold_bn", code="qexp.ptq.corrections:fold_bn",
            summary="Folds batch norm into the layer before it.",
            switch="fold_bn", choice=None, step="before",
            needs_folding=False, needs_images=False, scales_channels=False, draws=False, chooses_codes=False,
            settings=(), label=None,
            did="folded {} batch norms", selective=False),
        CorrectionInfo(
            name="rescale", code="qexp.ptq.corrections:rescale",
            summary="Scales channels at random and leaves the float function as it is: what equalization undoes.",
            switch="rescale_log10", choice=None, step="before",
            needs_folding=True, needs_images=False, scales_channels=True, draws=False, chooses_codes=False,
            settings=("rescale_log10", "rescale_seed"), label=_rescale_label,
            did="scaled the channels between {} pairs of layers", selective=False),
        CorrectionInfo(
            name="equalize", code="qexp.ptq.corrections:equalize_channels",
            summary="Equalizes the channel ranges of neighbouring layers.",
            switch="equalize", choice=None, step="before",
            needs_folding=True, needs_images=False, scales_channels=True, draws=False, chooses_codes=False,
            settings=(), label=None,
            did="equalized {} pairs of layers", selective=False),
        CorrectionInfo(
            name="absorb_bias", code="qexp.ptq.corrections:absorb_bias",
            summary="Moves high biases into the next layer.",
            switch="absorb_bias", choice=None, step="before",
            needs_folding=True, needs_images=False, scales_channels=False, draws=False, chooses_codes=False,
            settings=(), label=None,
            did="absorbed the biases of {} pairs of layers", selective=True),
        CorrectionInfo(
            name="adaround", code="qexp.ptq.corrections:adaround",
            summary="Rounds weights up or down so that the layer's output changes least.",
            switch="adaround", choice=None, step="after",
            needs_folding=False, needs_images=True, scales_channels=False, draws=True, chooses_codes=True,
            settings=("adaround_iterations", "adaround_lr", "adaround_lambda", "adaround_warmup",
                      "adaround_beta_start", "adaround_beta_end", "adaround_relu", "adaround_batch_size"),
            label=None,
            did="chose the rounding of {} weights", selective=False),
        CorrectionInfo(
            name="gptq", code="qexp.ptq.corrections:gptq",
            summary="Rounds one input's weights after another; those that follow make up for it (GPTQ).",
            switch="gptq", choice=None, step="after",
            needs_folding=False, needs_images=True, scales_channels=False, draws=False, chooses_codes=True,
            settings=("gptq", "feedback_damping", "feedback_act_order"), label=_feedback_label("gptq", damped=True),
            did="chose the codes of {} weights", selective=False),
        CorrectionInfo(
            name="gpfq", code="qexp.ptq.corrections:gpfq",
            summary="The same, each input as the float network's sum so far asks, later ones not foreseen (GPFQ).",
            switch="gpfq", choice=None, step="after",
            needs_folding=False, needs_images=True, scales_channels=False, draws=False, chooses_codes=True,
            settings=("gpfq", "feedback_act_order"), label=_feedback_label("gpfq", damped=False),
            did="chose the codes of {} weights", selective=False),
        CorrectionInfo(
            name="qronos", code="qexp.ptq.corrections:qronos",
            summary="GPTQ that first corrects for what quantizing the layers before has done to the inputs (Qronos).",
            switch="qronos", choice=None, step="after",
            needs_folding=False, needs_images=True, scales_channels=False, draws=False, chooses_codes=True,
            settings=("qronos", "feedback_damping", "feedback_act_order"), label=_feedback_label("qronos", damped=True),
            did="chose the codes of {} weights", selective=False),
        CorrectionInfo(
            name="bias_empirical", code="qexp.ptq.corrections:bias_empirical",
            summary="Takes from each layer's bias the mean that quantization shifted, as calibration images show it.",
            switch="bias", choice="empirical", step="after",
            needs_folding=False, needs_images=True, scales_channels=False, draws=False, chooses_codes=False,
            settings=(), label=None,
            did="corrected {} layers", selective=False),
        CorrectionInfo(
            name="bias_analytic", code="qexp.ptq.corrections:bias_analytic",
            summary="Takes from each layer's bias the mean that quantization shifted, as batch norm tells it.",
            switch="bias", choice="analytic", step="after",
            needs_folding=False, needs_images=False, scales_channels=False, draws=False, chooses_codes=False,
            settings=(), label=None,
            did="corrected {} layers", selective=True),
        CorrectionInfo(
            name="reestimate_bn", code="qexp.ptq.corrections:reestimate_bn",
            summary="Re-estimates the batch norms that are left, on calibration images of the quantized network.",
            switch="reestimate_bn", choice=None, step="after",
            needs_folding=False, needs_images=True, scales_channels=False, draws=False, chooses_codes=False,
            settings=(), label=None,
            did="re-estimated {} batch norms", selective=False),
    ],
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CorrectSettings:
    """What is done to a network before, while and after its weights are rounded; each is one switch.

    Args:
        fold_bn: fold batch norm into the layer before it.
        equalize: equalize the channel ranges of neighbouring layers.
        absorb_bias: move high biases into the next layer.
        rescale_log10: no correction but what one undoes: channels are first scaled by 10^U(-r, r), which leaves the float
            function as it is.
        rescale_seed: of the factors of `rescale_log10`.
        bias: of each layer, by the mean that quantization shifted: `empirical` on calibration images, `analytic` from batch norm.
        reestimate_bn: statistics of the batch norms that are left, on calibration images of the quantized network.
        adaround: round weights up or down so that the layer's output changes least, not to the nearest code.
        adaround_iterations: of Adam, for each layer.
        adaround_lr: learning rate of Adam.
        adaround_lambda: weight of the regularizer.
        adaround_warmup: share of the iterations without the regularizer.
        adaround_beta_start: exponent of the regularizer at first.
        adaround_beta_end: exponent of the regularizer at the end.
        adaround_relu: compare behind the ReLU where a layer has one; on samples, which takes longer.
        adaround_batch_size: output positions drawn for an iteration, where samples are drawn.
        gptq: round one input's weights after another, and have those that follow make up for it.
        gpfq: the same, greedily, against the float network's inputs.
        qronos: the same as GPTQ, against the float network's inputs.
        feedback_damping: of gptq and qronos: what is added to the diagonal of the inputs' second moments, relative to its mean.
        feedback_act_order: of all three: inputs are taken from the largest to the smallest, and not as they lie.
    """

    fold_bn: bool = False
    equalize: bool = False
    absorb_bias: bool = False
    rescale_log10: Annotated[float, Ge(0.0), Le(6.0)] = 0.0
    rescale_seed: Seed = 0
    bias: str = "none"
    reestimate_bn: bool = False
    adaround: bool = False
    adaround_iterations: Count = 1000
    adaround_lr: Positive = 0.01
    adaround_lambda: NotNegative = 0.01
    adaround_warmup: Share = 0.2
    adaround_beta_start: float = 20.0
    adaround_beta_end: Annotated[float, Ge(1.0)] = 2.0
    adaround_relu: bool = False
    adaround_batch_size: Count = 1024
    gptq: bool = later(False)
    gpfq: bool = later(False)
    qronos: bool = later(False)
    feedback_damping: NotNegative = later(0.01)
    feedback_act_order: bool = later(False)

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "correct")
        choose("correct.bias", self.bias, ["none", *(row.choice for row in CORRECTIONS.values() if row.choice is not None)])
        if self.adaround_beta_start < self.adaround_beta_end:
            allowed = f"at least correct.adaround_beta_end={self.adaround_beta_end:g}"
            raise UserError("correct.adaround_beta_start", self.adaround_beta_start, allowed=allowed)
        choosing = [f"correct.{row.switch}" for row in self.asked if row.chooses_codes]
        if len(choosing) > 1:
            remedy = "Each of them chooses the code of every weight: give a job one of them."
            raise UserError(choosing[0], True, allowed=f"false with {' and '.join(choosing[1:])}", remedy=remedy)
        for row in self.asked:
            if row.needs_folding and not self.fold_bn:
                value = getattr(self, row.switch)
                remedy = "Between a layer and the next ReLU there must be no batch norm: set correct.fold_bn=true."
                allowed = f"{'true only with' if value is True else '0 without'} correct.fold_bn=true"
                raise UserError(f"correct.{row.switch}", value, allowed=allowed, remedy=remedy)

    @property
    def asked(self) -> tuple[CorrectionInfo, ...]:
        """The corrections that are on, in the order in which they are done."""
        return tuple(row for row in CORRECTIONS.values() if row.is_on(self))

    @property
    def words(self) -> dict[str, str]:
        """Row of each correction that is on -> what labels call it, in order: `fold_bn`, `rescale_2`, `gptq act_order`, ..."""
        return {row.name: row.name if row.label is None else row.label(self) for row in self.asked}

    @property
    def needs_images(self) -> bool:
        """True where a correction reads calibration images."""
        return any(row.needs_images for row in self.asked)

    @property
    def identity(self) -> dict[str, object]:
        """What decides the network that it makes; settings of corrections that are off stay out."""
        owned = {key for row in CORRECTIONS.values() for key in row.settings}
        read = {key for row in self.asked for key in row.settings}
        return {key: value for key, value in asdict(self).items() if key in read or key not in owned}


def sentences(outcomes: Mapping[str, Outcome], *, alarming: bool) -> list[str]:
    """What is to be said of corrections that left something alone: the alarms on the number, or else what is worth a note.

    Args:
        outcomes: by row.
        alarming: which of the two.
    """
    rows = [(CORRECTIONS[name], outcome) for name, outcome in outcomes.items() if outcome.left or not outcome.done]
    return [row.sentence(outcome) for row, outcome in rows if row.is_alarm(outcome) == alarming]
