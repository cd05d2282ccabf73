"""The methods that find clipping ranges, one row each; torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from qexp.base.catalog import Catalog, Info, import_object

Reads = Literal["ends", "sample", "batch_norm"]
READS: tuple[Reads, ...] = get_args(Reads)


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
            name="minmax",
            summary="The smallest and the largest value of all images: nothing is clipped.",
            code="qexp.ptq.range_methods:minmax",
            reads="ends",
            for_weights=True,
            depends_on_grid=False,
            even_grids_only=False,
            dequantized_only=False,
            scaled_channels=True,
            settings=(),
        ),
        RangeMethodInfo(
            name="ema_minmax",
            summary="A moving average of the batches' smallest and largest values.",
            code="qexp.ptq.range_methods:ema_minmax",
            reads="ends",
            for_weights=False,
            depends_on_grid=False,
            even_grids_only=False,
            dequantized_only=False,
            scaled_channels=True,
            settings=("momentum",),
        ),
        RangeMethodInfo(
            name="percentile",
            summary="What holds calibrate.percentile percent of the values.",
            code="qexp.ptq.range_methods:percentile",
            reads="sample",
            for_weights=True,
            depends_on_grid=True,
            even_grids_only=False,
            dequantized_only=False,
            scaled_channels=True,
            settings=("percentile",),
        ),
        RangeMethodInfo(
            name="mse",
            summary="The range whose grid reproduces the values with the least error, sum |x - x^|^norm.",
            code="qexp.ptq.range_methods:mse",
            reads="sample",
            for_weights=True,
            depends_on_grid=True,
            even_grids_only=False,
            dequantized_only=True,
            scaled_channels=True,
            settings=("norm", "num_candidates"),
        ),
        RangeMethodInfo(
            name="kl",
            summary="The threshold with the least KL divergence between histograms, as TensorRT's entropy calibration.",
            code="qexp.ptq.range_methods:kl",
            reads="sample",
            for_weights=True,
            depends_on_grid=True,
            even_grids_only=True,
            dequantized_only=False,
            scaled_channels=True,
            settings=("num_candidates", "num_bins"),
        ),
        RangeMethodInfo(
            name="aciq",
            summary="The clip that is best for a Laplace or Gaussian density of the values' scale, by formula.",
            code="qexp.ptq.range_methods:aciq",
            reads="sample",
            for_weights=True,
            depends_on_grid=True,
            even_grids_only=True,
            dequantized_only=False,
            scaled_channels=True,
            settings=("distribution",),
        ),
        RangeMethodInfo(
            name="bn",
            summary="beta +- num_sigmas |gamma| of the batch norm before a place, without images; minmax where there is none.",
            code="qexp.ptq.range_methods:bn",
            reads="batch_norm",
            for_weights=False,
            depends_on_grid=False,
            even_grids_only=False,
            dequantized_only=False,
            scaled_channels=False,
            settings=("num_sigmas",),
        ),
    ],
    check=_check,
)
