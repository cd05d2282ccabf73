"""The methods that find clipping ranges, one row each, and the settings of the calibration; torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, cast, get_args

from annotated_types import Ge, Gt, Le

from qexp.base.catalog import CUSTOM, Catalog, Info, import_object, is_own
from qexp.base.checks import Count, Natural, Positive, Share, check_bounds
from qexp.base.errors import UserError, choose
from qexp.config.later import later, stored_values
from qexp.quant.scheme_table import SchemeInfo

Reads = Literal["ends", "sample", "batch_norm"]
Side = Literal["output", "input"]  # of a module, where its activation point is observed
SIDES: tuple[Side, ...] = get_args(Side)
CALIB: Literal["calib"] = "calib"


@dataclass(frozen=True, kw_only=True)
class RangeMethodInfo(Info):
    """One way to find a range; its code is `find(values, spec, settings) -> (low, high)`, `qexp.ptq.range_methods`.

    Args:
        reads: what `values` is: the `ends` of the batches, a `sample` of all values, or the `batch_norm` before the place, which
            needs no images; a place without one takes the smallest and the largest value.
        for_weights: it finds ranges of weights too, which have neither batches nor a batch norm before them.
        depends_on_grid: other bits or another scheme give other limits.
        even_grids_only: it reckons with steps of one width.
        dequantized_only: it compares values with their quantized copy, which must not hold codes.
        scaled_channels: it may follow a correction that scales channels.
        settings: of `calibrate.*`, those that it reads; `num_bins` is also read for every sample.
    """

    reads: Reads
    for_weights: bool
    depends_on_grid: bool
    even_grids_only: bool
    dequantized_only: bool
    scaled_channels: bool
    settings: tuple[str, ...]

    def takes(self, scheme: SchemeInfo) -> bool:
        """True where it can find a range for the grids of a scheme."""
        return (scheme.even_steps or not self.even_grids_only) and (scheme.dequantizes or not self.dequantized_only)

    def check_grid(self, scheme: SchemeInfo, key: str = "calibrate") -> None:
        """Raise UserError where it cannot find a range for the grids of a scheme."""
        if not self.takes(scheme):
            *others, last = RANGE_METHODS.names_where(lambda row: row.for_weights and row.takes(scheme))
            allowed = f"{', '.join(others)} or {last} for quant={scheme.name}"
            remedy = "Its copy holds codes." if self.dequantized_only else "It reckons with steps of one width."
            raise UserError(key, self.name, allowed=allowed, remedy=remedy)

    @property
    def read_settings(self) -> frozenset[str]:
        """The settings that its ranges depend on."""
        return frozenset(self.settings) | ({"num_bins"} if self.reads == "sample" else set())


def _check(row: RangeMethodInfo, code: object) -> None:
    """A user's row is tried on small values before anything runs; ours are in the tests."""
    check = cast("Callable[[RangeMethodInfo, object], None]", import_object("qexp.ptq.check_range_method:check_range_method"))
    check(row, code)


RANGE_METHODS: Catalog[RangeMethodInfo] = Catalog(
    "calibrate",
    RangeMethodInfo,
    [
        RangeMethodInfo(
            name="minmax", code="qexp.ptq.range_methods:minmax",
            summary="The smallest and the largest value of all images: nothing is clipped.",
            reads="ends", for_weights=True,
            depends_on_grid=False, even_grids_only=False, dequantized_only=False,
            scaled_channels=True, settings=()),
        RangeMethodInfo(
            name="ema_minmax", code="qexp.ptq.range_methods:ema_minmax",
            summary="A moving average of the batches' smallest and largest values.",
            reads="ends", for_weights=False,
            depends_on_grid=False, even_grids_only=False, dequantized_only=False,
            scaled_channels=True, settings=("momentum",)),
        RangeMethodInfo(
            name="percentile", code="qexp.ptq.range_methods:percentile",
            summary="What holds calibrate.percentile percent of the values.",
            reads="sample", for_weights=True,
            depends_on_grid=True, even_grids_only=False, dequantized_only=False,
            scaled_channels=True, settings=("percentile",)),
        RangeMethodInfo(
            name="mse", code="qexp.ptq.mse:mse_range",
            summary="The range whose grid reproduces the values with the least error, sum |x - x^|^norm.",
            reads="sample", for_weights=True,
            depends_on_grid=True, even_grids_only=False, dequantized_only=True,
            scaled_channels=True, settings=("norm", "num_candidates")),
        RangeMethodInfo(
            name="kl", code="qexp.ptq.kl:kl_range",
            summary="The threshold with the least KL divergence between histograms, as TensorRT's entropy calibration.",
            reads="sample", for_weights=True,
            depends_on_grid=True, even_grids_only=True, dequantized_only=False,
            scaled_channels=True, settings=("num_candidates", "num_bins")),
        RangeMethodInfo(
            name="aciq", code="qexp.ptq.aciq:aciq_range",
            summary="The clip that is best for a Laplace or Gaussian density of the values' scale, by formula.",
            reads="sample", for_weights=True,
            depends_on_grid=True, even_grids_only=True, dequantized_only=False,
            scaled_channels=True, settings=("distribution",)),
        RangeMethodInfo(
            name="bn", code="qexp.ptq.range_methods:bn",
            summary="beta +- num_sigmas |gamma| of the batch norm before a place, without images; minmax where there is none.",
            reads="batch_norm", for_weights=False,
            depends_on_grid=False, even_grids_only=False, dequantized_only=False,
            scaled_channels=False, settings=("num_sigmas",)),
    ],
    check=_check,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """How the clipping ranges of weights and activations are found.

    Args:
        name: the method for activations, in `RANGE_METHODS`, or `custom`.
        weights: the method for weights, or `custom`.
        factory: `package.module:function` or `file.py:function` for `custom`; returns a `RangeMethodInfo`.
        file: ranges of activations that an earlier run took and saved beside its records; they are taken as they are, so that
            `name` and its settings are not read.
        split: where the images come from. Anything but `calib` is recorded with the ranges: what is calibrated on the images that
            score it looks better than it is.
        num_images: only so many images of the split; None takes all.
        draw: which images of the split those are: other draws are other permutations of it, of which `num_images` are the first.
        batch_size: of the batches of the split; `ema_minmax` depends on it.
        percentile: of `percentile`: what remains inside, percent, of the magnitudes or of each side (`qexp.ptq.range_methods`).
        momentum: of `ema_minmax`: weight of the average so far when a batch is added.
        norm: of `mse`: the exponent p of sum |x - x^|^p.
        num_candidates: of `mse` and `kl`: how many ranges are tried.
        num_bins: of an activation's histogram, on each side of zero.
        distribution: of `aciq`: what the values are taken to follow.
        num_sigmas: of `bn`: half the width of a channel's range, in standard deviations.
    """

    name: str = "minmax"
    weights: str = "minmax"
    factory: str | None = later(None)
    file: str | None = None
    split: Literal["calib", "select", "train", "test"] = CALIB
    num_images: Count | None = None
    draw: Natural = later(0)
    batch_size: Count = 64
    percentile: Annotated[float, Gt(50.0), Le(100.0)] = 99.99
    momentum: Share = 0.9
    norm: Annotated[float, Ge(0.5), Le(10.0)] = 2.0
    num_candidates: Annotated[int, Ge(2), Le(10_000)] = 100
    num_bins: Annotated[int, Ge(128), Le(65_536)] = 2048
    distribution: Literal["laplace", "gaussian"] = "laplace"
    num_sigmas: Positive = 6.0

    def __post_init__(self) -> None:
        """Check the ranges, and that the methods exist."""
        check_bounds(self, "calibrate")
        if self.factory is not None and CUSTOM not in (self.name, self.weights):
            remedy = f"It belongs to calibrate={CUSTOM} and calibrate.weights={CUSTOM}."
            raise UserError("calibrate.factory", self.factory, allowed="null", remedy=remedy)
        _ = self.method
        for_weights = RANGE_METHODS.names_where(lambda row: row.for_weights)
        if not is_own(self.weights):
            choose("calibrate.weights", self.weights, [*for_weights, CUSTOM])
        if not self.weight_method.for_weights:
            remedy = f"{self.weight_method.name} finds ranges of activations alone."
            raise UserError("calibrate.weights", self.weights, allowed=for_weights, remedy=remedy)

    @property
    def method(self) -> RangeMethodInfo:
        """The method for activations."""
        return RANGE_METHODS.choose(self.name, factory=self._factory_of(self.name), key="calibrate.name")

    @property
    def weight_method(self) -> RangeMethodInfo:
        """The method for weights."""
        return RANGE_METHODS.choose(self.weights, factory=self._factory_of(self.weights), key="calibrate.weights")

    @property
    def clips_weights(self) -> bool:
        """True where weights have another range than all of their values, which a quantizer takes by itself."""
        return self.weights != CalibrateSettings.weights

    @property
    def identity(self) -> dict[str, object]:
        """All that decides ranges, as plain values: a method of the user's own by its source, wherever that lies."""
        values = stored_values(asdict(self), CalibrateSettings)
        values.pop("factory", None)
        names = {key: self._factory_of(name) or name for key, name in (("name", self.name), ("weights", self.weights))}
        return values | {key: RANGE_METHODS.identity(name) for key, name in names.items()}

    def _factory_of(self, name: str) -> str | None:
        return self.factory if name == CUSTOM else None
