"""Numbers that can be worked out by hand."""

import math

import pytest
import torch

from qexp.analysis.measures import Errors, count_clipped, histogram, sqnr_db, weight_grid
from qexp.base.types import QuantSpec
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_


def test_sqnr_of_known_errors():
    errors = Errors()
    errors.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    errors.add(torch.tensor([0.0]), torch.tensor([0.0]), clipped=1)
    assert (errors.n, errors.signal, errors.noise) == (3, 25.0, 0.25)
    assert errors.sqnr_db == pytest.approx(20.0)
    assert errors.mse == pytest.approx(0.25 / 3)
    assert errors.saturation == pytest.approx(1 / 3)


def test_an_exact_copy_has_no_sqnr():
    assert sqnr_db(1.0, 0.0) is None
    assert sqnr_db(0.0, 0.0) is None


def test_clipped_is_what_lies_half_a_step_beyond():
    one = torch.tensor(1.0)
    x = torch.tensor([-2.6, -2.5, 0.0, 1.5, 1.51, 40.0])
    assert count_clipped(x, -2 * one, one, one, one) == 3


def test_histogram_counts_every_value():
    bins = histogram(torch.linspace(-1, 1, 1001), num_bins=10)
    assert sum(bins.counts) == 1001 and (bins.minimum, bins.maximum) == (-1.0, 1.0)
    assert histogram(torch.full((7,), 3.0)).counts.count(7) == 1


def test_the_affine_grid_of_a_known_range():
    """[-1, 2] at two bits: scale 1, zero point -1, codes -2 to 1, so that the levels are -1, 0, 1, 2."""
    grid = weight_grid(torch.tensor([-1.0, 0.4, 2.0]), QuantSpec(scheme="affine", bits=2))
    assert grid.levels == (-1.0, 0.0, 1.0, 2.0)
    assert (float(grid.low), float(grid.high), float(grid.scales), grid.clipped) == (-1.0, 2.0, 1.0, 0)


def test_limits_clip_what_lies_outside():
    """Within [-1, 2] the same levels; -1.6 and 2.6 lie more than half a step beyond, 2.4 does not."""
    x = torch.tensor([-1.6, -1.0, 0.0, 2.4, 2.6])
    limits = (torch.tensor(-1.0), torch.tensor(2.0))
    assert weight_grid(x, QuantSpec(scheme="affine", bits=2), limits).clipped == 2


def test_every_channel_has_a_grid_and_the_widest_is_listed():
    x = torch.tensor([[-1.0, 1.0], [-3.0, 3.0]])
    spec = QuantSpec(scheme="symmetric_restricted", bits=3, granularity="per_channel")
    grid = weight_grid(x, spec)
    assert grid.high.tolist() == [1.0, 3.0] and grid.low.tolist() == [-1.0, -3.0]
    assert grid.levels == pytest.approx((-3, -2, -1, 0, 1, 2, 3))


@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.dequantizes))
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_copies_lie_on_the_levels_of_their_grid(scheme, granularity):
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 0.2
    bits = min(max(4, SCHEMES[scheme].min_bits), SCHEMES[scheme].max_bits)
    spec = QuantSpec(scheme=scheme, bits=bits, granularity=granularity, group_size=8)
    grid = weight_grid(x, spec)
    copy = quantize_(torch.empty_like(x), x, spec).double()
    assert float(copy.min()) >= float(grid.low.min()) - 1e-6 and float(copy.max()) <= float(grid.high.max()) + 1e-6
    if granularity == "per_tensor":
        levels = torch.tensor(grid.levels, dtype=torch.float64)
        assert float((copy.flatten()[:, None] - levels).abs().amin(1).max()) < 1e-6
        assert len(grid.levels) <= 2**spec.bits


@pytest.mark.parametrize("scheme", ["affine", "symmetric", "symmetric_restricted", "linear", "scale_factor", "pow2_scale"])
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_the_whole_range_clips_nothing(scheme, bits):
    x = torch.randn(500, generator=torch.Generator().manual_seed(bits))
    assert weight_grid(x, QuantSpec(scheme=scheme, bits=bits)).clipped == 0


def test_no_grid_where_codes_stand_for_no_values():
    x = torch.tensor([0.0, 1.0])
    assert weight_grid(x, QuantSpec(scheme="linear_raw", bits=4)) is None
    assert weight_grid(x, QuantSpec(scheme="half", bits=16, mode="half")) is None


def test_sqnr_of_a_uniform_tensor_is_six_decibels_a_bit():
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    errors = Errors()
    errors.add(x, quantize_(torch.empty_like(x), x, QuantSpec(scheme="symmetric", bits=8)))
    assert errors.sqnr_db == pytest.approx(20 * math.log10(256), abs=0.1)
