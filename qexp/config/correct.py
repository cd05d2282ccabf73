"""Settings of the corrections of a quantized network; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qexp.base.checks import check_all, check_range
from qexp.base.errors import UserError

ADVISED_IMAGES = 1000  # fewer leave BN's re-estimated statistics noisy


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
    """

    fold_bn: bool = False
    equalize: bool = False
    absorb_bias: bool = False
    rescale_log10: float = 0.0
    rescale_seed: int = 0
    bias: Literal["none", "empirical", "analytic"] = "none"
    reestimate_bn: bool = False
    adaround: bool = False
    adaround_iterations: int = 1000
    adaround_lr: float = 0.01
    adaround_lambda: float = 0.01
    adaround_warmup: float = 0.2
    adaround_beta_start: float = 20.0
    adaround_beta_end: float = 2.0
    adaround_relu: bool = False
    adaround_batch_size: int = 1024

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_all(
            (
                ("correct.rescale_log10", self.rescale_log10, 0.0, 6.0),
                ("correct.rescale_seed", self.rescale_seed, 0, 2**63 - 1),
                ("correct.adaround_iterations", self.adaround_iterations, 0, None),
                ("correct.adaround_lambda", self.adaround_lambda, 0.0, None),
                ("correct.adaround_warmup", self.adaround_warmup, 0.0, 1.0),
                ("correct.adaround_beta_end", self.adaround_beta_end, 1.0, None),
                ("correct.adaround_batch_size", self.adaround_batch_size, 1, None),
            )
        )
        check_range("correct.adaround_lr", self.adaround_lr, 0.0, open_low=True)
        if self.adaround_beta_start < self.adaround_beta_end:
            allowed = f"at least correct.adaround_beta_end={self.adaround_beta_end:g}"
            raise UserError("correct.adaround_beta_start", self.adaround_beta_start, allowed=allowed)
        for key in ("equalize", "absorb_bias", "rescale_log10"):
            if getattr(self, key) and not self.fold_bn:
                remedy = "Between a layer and the next ReLU there must be no batch norm: set correct.fold_bn=true."
                allowed = "0 without correct.fold_bn=true" if key == "rescale_log10" else "true only with correct.fold_bn=true"
                raise UserError(f"correct.{key}", getattr(self, key), allowed=allowed, remedy=remedy)

    @property
    def names(self) -> tuple[str, ...]:
        """What is done beside rounding to the nearest code, in order: `fold_bn`, `rescale_2`, `bias_empirical`, ..."""
        switches = ["fold_bn"] if self.fold_bn else []
        if self.rescale_log10:
            switches.append(f"rescale_{self.rescale_log10:g}" + (f"_seed{self.rescale_seed}" if self.rescale_seed else ""))
        switches += [name for name in ("equalize", "absorb_bias", "adaround") if getattr(self, name)]
        switches += [f"bias_{self.bias}"] if self.bias != "none" else []
        return (*switches, *(["reestimate_bn"] if self.reestimate_bn else []))

    @property
    def needs_images(self) -> bool:
        """True where a correction reads calibration images."""
        return self.bias == "empirical" or self.reestimate_bn or self.adaround
