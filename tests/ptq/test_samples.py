"""Histograms: every value is counted once, in its bin, and what is asked of counts is what is asked of the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.base.errors import UserError
from qexp.ptq.samples import Histogram, Rows, count_bins

FLOATS = st.floats(-1e6, 1e6, width=32)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(values=st.lists(FLOATS, min_size=1, max_size=200), cut=st.integers(0, 200))
def test_counts_add_up_whatever_the_batches(values, cut):
    x = torch.tensor(values)
    edge = x.abs().max().reshape(1)
    counts, zeros = count_bins(x, edge, 128, None)
    assert counts.sum() + zeros == len(values) and (counts >= 0).all()
    parts = [count_bins(part, edge, 128, None) for part in (x[:cut], x[cut:])]
    assert torch.equal(parts[0][0] + parts[1][0], counts) and torch.equal(parts[0][1] + parts[1][1], zeros)


def test_bins_are_those_of_torch():
    x = gaussian(10_000)
    edge = x.abs().max()
    counts, zeros = count_bins(x, edge.reshape(1), 128, None)
    expected = torch.histc(x.double(), 256, -float(edge), float(edge))
    assert (counts[0] - expected).abs().sum() <= 4  # values within a rounding of two bins' border
    assert zeros == 0


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_are_counted_apart(axis):
    x = gaussian(4, 5, 6)
    x[x.abs() < 0.2] = 0
    others = [dim for dim in range(3) if dim != axis % 3]
    edge = x.abs().amax(others)
    counts, zeros = count_bins(x, edge, 128, axis)
    for number, part in enumerate(x.unbind(axis)):
        alone = count_bins(part, edge[number : number + 1], 128, None)
        assert torch.equal(counts[number], alone[0][0]) and zeros[number] == alone[1][0] == (part == 0).sum()


def test_a_group_of_zeros_and_one_of_almost_zeros():
    x = torch.tensor([[0.0, 0.0, 0.0], [1e-42, -1e-42, 0.0], [1.0, -1.0, 0.5]])
    counts, zeros = count_bins(x, x.abs().amax(1), 128, 0)
    assert zeros.tolist() == [3, 1, 0] and counts.sum(1).tolist() == [0, 2, 3]


def test_quantile_of_rows_is_torchs():
    x = gaussian(3, 1001)
    for share in (0.0, 0.001, 0.3, 0.5, 0.9999, 1.0):
        assert torch.equal(Rows.of(x).quantile(share), torch.quantile(x.double(), share, dim=1).float())


@pytest.mark.parametrize("sparse", [False, True])
def test_quantile_of_counts_is_within_a_bin(sparse):
    x = gaussian(2, 100_000)
    x = x.relu() if sparse else x + torch.tensor([[0.0], [1.0]])
    rows = Rows.of(x)
    histogram = rows.histogram(2048)
    for share in (0.0, 0.0001, 0.01, 0.3, 0.6, 0.99, 0.9999, 1.0):
        for one, other in ((rows, histogram), (rows.magnitudes(), histogram.magnitudes())):
            exact = one.quantile(share)
            # in the tails a step between neighbours is wider than a bin
            slack = histogram.edge / 2048 + (one.quantile(min(1, share + 2e-5)) - one.quantile(max(0, share - 2e-5))).abs()
            assert ((other.quantile(share) - exact).abs() <= slack).all(), share


def test_points_have_the_values_moments_and_stay_in_their_range():
    x = gaussian(2, 50_000).relu() + torch.tensor([[0.0], [0.5]])
    values, weights = Rows.of(x).histogram(2048).points()
    assert torch.allclose(weights.sum(1), torch.tensor(50_000.0).double())
    for power in (1, 2):
        moment = (values.double() ** power * weights).sum(1) / 50_000
        assert torch.allclose(moment, (x.double() ** power).mean(1), rtol=1e-3)
    assert (values.amin(1) >= torch.tensor([0.0, 0.0])).all() and (values.amax(1) <= x.amax(1)).all()


def test_magnitudes_fold_the_sides():
    x = gaussian(2, 1000) + torch.tensor([[0.0], [5.0]])
    folded, direct = Rows.of(x).histogram(256).magnitudes(), Rows.of(x.abs()).histogram(256)
    assert isinstance(folded, Histogram) and torch.equal(folded.maximum, direct.maximum)
    assert torch.equal(folded.counts, direct.counts)
    assert folded.minimum.tolist() == [0.0, float(x[1].min())]


def test_rows_refuse_what_has_no_range():
    for x, words in ((torch.empty(2, 0), "at least one element"), (torch.tensor([[1.0, float("nan")]]), "NaN")):
        with pytest.raises(UserError, match=words):
            Rows.of(x)
