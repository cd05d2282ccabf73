"""Ranges per tensor and per channel, and what has none."""

from __future__ import annotations

import math

import pytest
import torch

from qexp.base.errors import UserError
from qexp.quant.ranges import min_max


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_channel_is_per_slice(axis):
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    minimum, maximum = min_max(x, axis)
    slices = x.unbind(axis)
    assert torch.equal(minimum, torch.stack([part.min() for part in slices]))
    assert torch.equal(maximum, torch.stack([part.max() for part in slices]))


def test_vector_per_channel_has_one_element_per_channel():
    x = torch.tensor([3.0, -1.0])
    assert all(torch.equal(end, x) for end in min_max(x, 0))


def test_scalar():
    assert [end.shape for end in min_max(torch.tensor(2.0))] == [(), ()]
    assert [end.shape for end in min_max(torch.tensor(2.0), 0)] == [(1,), (1,)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_single_bad_element_raises(axis, bad):
    x = torch.randn(50, 40)
    x[31, 17] = bad
    with pytest.raises(UserError, match="NaN or infinity"):
        min_max(x, axis)


@pytest.mark.parametrize("axis", [None, 0])
def test_empty_raises(axis):
    with pytest.raises(UserError, match="at least one element"):
        min_max(torch.empty(0, 4), axis)
