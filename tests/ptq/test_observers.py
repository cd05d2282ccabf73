"""Observers: exact in pieces, in any order of ranks, and silent about nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.calibrate import CalibrateSettings
from qexp.ptq.observers import EndsObserver, HistogramObserver

SPEC = QuantSpec(scheme="affine", bits=8)


def batches(number: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 5, 5, generator=generator).relu() * (1 + index) for index in range(number)]


def watch(observer, parts):
    for part in parts:
        observer.observe(part)
        observer.end_batch()
    return observer


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_ranks_merge_into_the_one_that_saw_all(axis, world_size):
    settings, data = CalibrateSettings(name="ema_minmax"), batches()
    whole = watch(EndsObserver(settings, axis), data)
    shares = [watch(EndsObserver(settings, axis), data[rank::world_size]) for rank in range(world_size)]
    merged = EndsObserver(settings, axis)
    merged.merge([share.state() for share in shares])
    assert equal(merged.state(), whole.state())
    assert all(torch.equal(*pair) for pair in zip(merged.result(SPEC), whole.result(SPEC), strict=True))

    settings = CalibrateSettings(name="mse", num_bins=128)
    counted = watch(HistogramObserver(whole.extremes(), settings, axis), data)
    parts = [watch(HistogramObserver(merged.extremes(), settings, axis), data[rank::world_size]) for rank in range(world_size)]
    together = HistogramObserver(merged.extremes(), settings, axis)
    together.merge([part.state() for part in parts])
    assert equal(together.state(), counted.state())
    assert all(torch.equal(*pair) for pair in zip(together.result(SPEC), counted.result(SPEC), strict=True))


@given(cuts=st.lists(st.integers(1, 99), max_size=4))
def test_batches_do_not_change_counts_and_extremes(cuts):
    x = torch.randn(100, generator=torch.Generator().manual_seed(1)).relu()
    parts = [part for part in x.tensor_split(sorted(cuts)) if len(part)]
    settings = CalibrateSettings(name="percentile", num_bins=128)
    ends = watch(EndsObserver(settings), parts).extremes()
    assert (float(ends[0]), float(ends[1])) == (0.0, float(x.max()))
    assert equal(watch(HistogramObserver(ends, settings), parts).state(), watch(HistogramObserver(ends, settings), [x]).state())


def test_minmax_and_the_moving_average():
    parts = [torch.tensor([-1.0, 1.0]), torch.tensor([-3.0, 2.0]), torch.tensor([0.0, 4.0])]
    assert watch(EndsObserver(CalibrateSettings()), parts).result(SPEC) == (-3, 4)
    low, high = watch(EndsObserver(CalibrateSettings(name="ema_minmax", momentum=0.5)), parts).result(SPEC)
    assert (float(low), float(high)) == (0.5 * (0.5 * -1 + 0.5 * -3) + 0.5 * 0, 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 4)


def test_the_moving_average_is_torchs():
    from torch.ao.quantization.observer import MovingAverageMinMaxObserver

    theirs, parts = MovingAverageMinMaxObserver(averaging_constant=0.1), batches()
    for part in parts:
        theirs(part - 0.5)
    low, high = watch(EndsObserver(CalibrateSettings(name="ema_minmax", momentum=0.9)), [part - 0.5 for part in parts]).result(
        SPEC
    )
    assert float(low) == pytest.approx(float(theirs.min_val)) and float(high) == pytest.approx(float(theirs.max_val))


def test_a_place_that_runs_twice_in_a_forward_is_one_batch():
    observer = EndsObserver(CalibrateSettings(name="ema_minmax", momentum=0.0))
    for values in ([-1.0, 0.0], [0.0, 5.0]):
        observer.observe(torch.tensor(values))
    assert observer.result(SPEC) == (-1, 5)


def test_what_is_remembered_is_not_what_was_seen():
    x = torch.tensor([1.0, 2.0])
    observer = watch(EndsObserver(CalibrateSettings(), axis=0), [x])
    x.zero_()
    assert observer.extremes()[1].tolist() == [1.0, 2.0]


def test_channels_have_ranges_of_their_own():
    x = torch.tensor([[[1.0, 2.0]], [[-1.0, 5.0]]]).transpose(1, 2)  # [2, 2 channels, 1]
    low, high = watch(EndsObserver(CalibrateSettings(), axis=1), [x]).result(SPEC)
    assert low.tolist() == [-1.0, 2.0] and high.tolist() == [1.0, 5.0]


def test_a_constant_place_has_that_value_as_its_range():
    for value in (0.0, 0.5):
        parts = [torch.full((4, 3), value)] * 2
        ends = watch(EndsObserver(CalibrateSettings(name="kl")), parts)
        observer = watch(HistogramObserver(ends.extremes(), CalibrateSettings(name="kl")), parts)
        assert observer.result(SPEC) == (value, value)


def test_nothing_empty_and_not_finite():
    with pytest.raises(UserError, match="at least one batch"):
        EndsObserver(CalibrateSettings()).result(SPEC)
    with pytest.raises(UserError, match="at least one element"):
        EndsObserver(CalibrateSettings()).observe(torch.empty(0, 3))
    for bad in (float("nan"), float("inf")):
        for axis in (None, 1):
            observer = watch(EndsObserver(CalibrateSettings(), axis), [torch.ones(2, 2), torch.tensor([[1.0, bad], [1.0, 1.0]])])
            observer.merge([observer.state(), EndsObserver(CalibrateSettings(), axis).state()])
            with pytest.raises(UserError, match="NaN or infinity"):
                observer.result(SPEC)
