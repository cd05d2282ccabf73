"""The corrections of a quantized network, one row each, in the order in which building a copy walks them; torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qexp.base.catalog import Catalog, Info

if TYPE_CHECKING:
    from qexp.config.correct import CorrectSettings


@dataclass(frozen=True, kw_only=True)
class CorrectionInfo(Info):
    """One correction; its code is `correct(copy)`, which changes a `qexp.ptq.corrections.Copy`.

    Args:
        switch: the setting of `correct.*` that asks for it.
        choice: the value of the switch that does; None where any but false and 0 does.
        step: on the float network `before` its weights are rounded, or on the quantized one `after`.
        needs_folding: only with `correct.fold_bn`.
        needs_images: it reads calibration images.
        scales_channels: ranges that batch norm tells no longer hold.
        draws: it reads the job's `seed`.
        settings: of `correct.*`, those that are part of a variant's key only while it is on. A new correction names all of its
            own, the switch too, so that keys of before stay.
        label: what tables call it, of its settings; None for its name.
    """

    switch: str
    choice: str | None
    step: Literal["before", "after"]
    needs_folding: bool
    needs_images: bool
    scales_channels: bool
    draws: bool
    settings: tuple[str, ...]
    label: Callable[[CorrectSettings], str] | None

    def is_on(self, settings: CorrectSettings) -> bool:
        """True where the settings ask for it."""
        value: object = getattr(settings, self.switch)
        return bool(value) if self.choice is None else value == self.choice


def _rescale_label(settings: CorrectSettings) -> str:
    return f"rescale_{settings.rescale_log10:g}" + (f"_seed{settings.rescale_seed}" if settings.rescale_seed else "")


CORRECTIONS: Catalog[CorrectionInfo] = Catalog(
    "correct",
    CorrectionInfo,
    [
        CorrectionInfo(
            name="fold_bn",
            summary="Folds batch norm into the layer before it.",
            code="qexp.ptq.corrections:fold_bn",
            switch="fold_bn",
            choice=None,
            step="before",
            needs_folding=False,
            needs_images=False,
            scales_channels=False,
            draws=False,
            settings=(),
            label=None,
        ),
        CorrectionInfo(
            name="rescale",
            summary="Scales channels at random and leaves the float function as it is: what equalization undoes.",
            code="qexp.ptq.corrections:rescale",
            switch="rescale_log10",
            choice=None,
            step="before",
            needs_folding=True,
            needs_images=False,
            scales_channels=True,
            draws=False,
            settings=("rescale_log10", "rescale_seed"),
            label=_rescale_label,
        ),
        CorrectionInfo(
            name="equalize",
            summary="Equalizes the channel ranges of neighbouring layers.",
            code="qexp.ptq.corrections:equalize_channels",
            switch="equalize",
            choice=None,
            step="before",
            needs_folding=True,
            needs_images=False,
            scales_channels=True,
            draws=False,
            settings=(),
            label=None,
        ),
        CorrectionInfo(
            name="absorb_bias",
            summary="Moves high biases into the next layer.",
            code="qexp.ptq.corrections:absorb_bias",
            switch="absorb_bias",
            choice=None,
            step="before",
            needs_folding=True,
            needs_images=False,
            scales_channels=False,
            draws=False,
            settings=(),
            label=None,
        ),
        CorrectionInfo(
            name="adaround",
            summary="Rounds weights up or down so that the layer's output changes least.",
            code="qexp.ptq.corrections:adaround",
            switch="adaround",
            choice=None,
            step="after",
            needs_folding=False,
            needs_images=True,
            scales_channels=False,
            draws=True,
            settings=(
                "adaround_iterations",
                "adaround_lr",
                "adaround_lambda",
                "adaround_warmup",
                "adaround_beta_start",
                "adaround_beta_end",
                "adaround_relu",
                "adaround_batch_size",
            ),
            label=None,
        ),
        CorrectionInfo(
            name="bias_empirical",
            summary="Takes from each layer's bias the mean that quantization shifted, as calibration images show it.",
            code="qexp.ptq.corrections:bias_empirical",
            switch="bias",
            choice="empirical",
            step="after",
            needs_folding=False,
            needs_images=True,
            scales_channels=False,
            draws=False,
            settings=(),
            label=None,
        ),
        CorrectionInfo(
            name="bias_analytic",
            summary="Takes from each layer's bias the mean that quantization shifted, as batch norm tells it.",
            code="qexp.ptq.corrections:bias_analytic",
            switch="bias",
            choice="analytic",
            step="after",
            needs_folding=False,
            needs_images=False,
            scales_channels=False,
            draws=False,
            settings=(),
            label=None,
        ),
        CorrectionInfo(
            name="reestimate_bn",
            summary="Re-estimates the batch norms that are left, on calibration images of the quantized network.",
            code="qexp.ptq.corrections:reestimate_bn",
            switch="reestimate_bn",
            choice=None,
            step="after",
            needs_folding=False,
            needs_images=True,
            scales_channels=False,
            draws=False,
            settings=(),
            label=None,
        ),
    ],
)
