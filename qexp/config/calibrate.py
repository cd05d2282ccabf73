"""Settings of the calibration; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qexp.base.checks import check_all, check_range

Method = Literal["minmax", "ema_minmax", "percentile", "mse", "kl", "aciq", "bn"]
WeightMethod = Literal["minmax", "percentile", "mse", "kl", "aciq"]  # a weight has neither batches nor a batch norm before it
Side = Literal["output", "input"]  # of a module, where its activation point is observed
METHOD_NAMES: tuple[Method, ...] = get_args(Method)
WEIGHT_METHOD_NAMES: tuple[WeightMethod, ...] = get_args(WeightMethod)
SIDES: tuple[Side, ...] = get_args(Side)
CALIB: Literal["calib"] = "calib"
READS: dict[str, tuple[Method, ...]] = {  # which methods read a setting that not all do
    "percentile": ("percentile",),
    "momentum": ("ema_minmax",),
    "norm": ("mse",),
    "num_candidates": ("mse", "kl"),
    "num_bins": ("percentile", "mse", "kl", "aciq"),
    "distribution": ("aciq",),
    "num_sigmas": ("bn",),
}


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """How the clipping ranges of weights and activations are found.

    Args:
        name: the method for activations.
        weights: the method for weights.
        file: ranges of activations that an earlier run took and saved beside its records; they are taken as they are, so that
            `name` and its settings are not read.
        split: where the images come from. Anything but `calib` is recorded with the ranges: what is calibrated on the images that
            score it looks better than it is.
        num_images: only so many images of the split; None takes all.
        batch_size: of the batches of the split; `ema_minmax` depends on it.
        percentile: of `percentile`: what remains inside, percent, of the magnitudes or of each side (`qexp.ptq.range_methods`).
        momentum: of `ema_minmax`: weight of the average so far when a batch is added.
        norm: of `mse`: the exponent p of sum |x - x^|^p.
        num_candidates: of `mse` and `kl`: how many ranges are tried.
        num_bins: of an activation's histogram, on each side of zero.
        distribution: of `aciq`: what the values are taken to follow.
        num_sigmas: of `bn`: half the width of a channel's range, in standard deviations.
    """

    name: Method = "minmax"
    weights: WeightMethod = "minmax"
    file: str | None = None
    split: Literal["calib", "select", "train", "test"] = CALIB
    num_images: int | None = None
    batch_size: int = 64
    percentile: float = 99.99
    momentum: float = 0.9
    norm: float = 2.0
    num_candidates: int = 100
    num_bins: int = 2048
    distribution: Literal["laplace", "gaussian"] = "laplace"
    num_sigmas: float = 6.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_all(
            (
                ("calibrate.num_images", self.num_images, 1, None),
                ("calibrate.batch_size", self.batch_size, 1, None),
                ("calibrate.momentum", self.momentum, 0.0, 1.0),
                ("calibrate.norm", self.norm, 0.5, 10.0),
                ("calibrate.num_candidates", self.num_candidates, 2, 10_000),
                ("calibrate.num_bins", self.num_bins, 128, 65_536),
            )
        )
        check_range("calibrate.percentile", self.percentile, 50.0, 100.0, open_low=True)
        check_range("calibrate.num_sigmas", self.num_sigmas, 0.0, open_low=True)
