"""Rounding every result to fp16, against fp16 itself."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from qexp.nn.half import RoundToHalf, round_to_half_


def test_elementwise_operations_give_the_bits_of_fp16():
    x, y = (torch.randn(1000, generator=torch.Generator().manual_seed(seed)).half() for seed in (0, 1))
    for function in (torch.add, torch.mul, torch.div, torch.sub):
        with RoundToHalf():
            assert torch.equal(function(x.float(), y.float()), function(x, y).float())


def test_matrix_product_is_accumulated_in_float32():
    x, w = torch.randn(8, 300).half().float(), torch.randn(10, 300).half().float()
    with RoundToHalf():
        rounded = F.linear(x, w)
    assert torch.equal(rounded, F.linear(x, w).half().float())


def test_in_place_results_are_rounded_and_views_still_view():
    x = torch.ones(4, 4)
    with RoundToHalf():
        x.add_(1 / 3)
        assert torch.equal(x, torch.full((4, 4), 4 / 3).half().float())
        x[0].mul_(2)
        row = x[1].expand(3, 4)
    assert x[0, 0] == 2 * x[2, 0] and row.data_ptr() == x[1].data_ptr()


def test_beyond_the_range_is_infinite():
    with RoundToHalf():
        assert (torch.full((2,), 300.0) * 300).isinf().all()


def test_outside_the_scope_and_other_dtypes_are_left_alone():
    with RoundToHalf():
        assert (torch.tensor([3], dtype=torch.float64) / 7 == 3 / 7).all()
    assert torch.ones(1) / 3 != (torch.ones(1) / 3).half().float()


def test_round_to_half_in_place():
    x = torch.tensor([1 / 3, 2.0])
    assert round_to_half_(x) is x and torch.equal(x, torch.tensor([1 / 3, 2.0]).half().float())
