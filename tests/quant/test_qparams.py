"""Scale and zero point, by hand and at the edges."""

from __future__ import annotations

import pytest
import torch

from qexp.base.errors import UserError
from qexp.quant.affine import quantize_affine
from qexp.quant.qparams import MIN_SCALE, choose_qparams, fixed_point_qparams, scale_factors


def ends(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(low), torch.tensor(high)


def test_affine_is_widened_to_zero_first():
    above = choose_qparams(*ends(0.5, 2.0), 8)
    assert above.scale == torch.tensor(2 / 255) and above.zero_point == -128
    below = choose_qparams(*ends(-2.0, -0.5), 8)
    assert below.scale == torch.tensor(2 / 255) and below.zero_point == 127
    both = choose_qparams(*ends(-1.0, 3.0), 4)
    assert both.scale == torch.tensor(4 / 15) and both.zero_point == -4 and (both.quant_min, both.quant_max) == (-8, 7)


def test_symmetric_is_restricted():
    qparams = choose_qparams(*ends(-1.0, 2.0), 8, scheme="symmetric_restricted")
    assert qparams.scale == torch.tensor(2 / 127) and qparams.zero_point == 0
    assert (qparams.quant_min, qparams.quant_max) == (-127, 127)
    ternary = choose_qparams(*ends(-1.0, 2.0), 2, scheme="symmetric_restricted")
    assert quantize_affine(torch.tensor([-2.0, -0.9, 0.1, 2.0]), ternary).tolist() == [-1, 0, 0, 1]


def test_one_bit():
    qparams = choose_qparams(*ends(-1.0, 3.0), 1)
    assert quantize_affine(torch.tensor([-1.0, 0.0, 3.0]), qparams).unique().numel() == 2
    with pytest.raises(UserError, match="2 to 16"):
        choose_qparams(*ends(-1.0, 3.0), 1, scheme="symmetric_restricted")


@pytest.mark.parametrize("symmetric", [False, True])
def test_channels(symmetric):
    low, high = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([2.0, 0.0, 0.5])
    qparams = choose_qparams(low, high, 8, scheme="symmetric_restricted" if symmetric else "affine", axis=0)
    alone = choose_qparams(low[0], high[0], 8, scheme="symmetric_restricted" if symmetric else "affine")
    assert qparams.axis == 0 and qparams.scale[0] == alone.scale and qparams.zero_point[0] == alone.zero_point
    assert qparams.scale[1] == 1, "a channel of zeros"
    assert qparams.scale.dtype == qparams.zero_point.dtype == torch.float32


@pytest.mark.parametrize("symmetric", [False, True])
def test_range_at_the_edges_of_float32(symmetric):
    tiny = choose_qparams(*ends(-1e-44, 1e-44), 8, scheme="symmetric_restricted" if symmetric else "affine")
    assert tiny.scale == MIN_SCALE and torch.isfinite(tiny.scale.reciprocal())
    wide = choose_qparams(*ends(-3e38, 3e38), 8, scheme="symmetric_restricted" if symmetric else "affine")
    assert torch.isfinite(wide.scale)
    with pytest.raises(UserError, match="constant 0"):
        choose_qparams(*ends(0.0, 0.0), 8, scheme="symmetric_restricted" if symmetric else "affine")


def test_overflowing_scale_raises():
    with pytest.raises(UserError, match="scale float32 holds"):
        choose_qparams(*ends(-3e38, 3e38), 1)


def test_symmetric_takes_all_codes():
    """Document 001: s = max(f_max, -f_min) / ((q_max - q_min) / 2)."""
    qparams = choose_qparams(*ends(-1.0, 2.0), 8, scheme="symmetric")
    assert qparams.scale == torch.tensor(2 / 127.5) and qparams.zero_point == 0
    assert (qparams.quant_min, qparams.quant_max) == (-128, 127)


def test_unsigned():
    qparams = choose_qparams(*ends(0.0, 3.0), 4, scheme="unsigned_symmetric")
    assert qparams.scale == torch.tensor(3 / 15) and (qparams.quant_min, qparams.quant_max) == (0, 15)
    assert quantize_affine(torch.tensor([-5.0, 0.0, 3.0]), qparams).tolist() == [0, 0, 15]
    with pytest.raises(UserError, match="no element above zero"):
        choose_qparams(*ends(-3.0, -1.0), 4, scheme="unsigned_symmetric")
    channels = choose_qparams(torch.tensor([-1.0, 0.0]), torch.tensor([-0.5, 2.0]), 4, scheme="unsigned_symmetric", axis=0)
    assert channels.scale.tolist() == [1, pytest.approx(2 / 15)]


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_pow2(bits):
    """The smallest power of two that does not clip, at a power of two and on both sides of it; the nearest may clip."""
    steps = 2 ** (bits - 1) - 1
    for power in (-20, 0, 7):
        for factor, above in ((0.51, 1), (0.75, 1), (1.0, 1), (1.0000002, 2), (1.5, 2)):
            largest = torch.tensor(factor * 2.0**power * steps)
            scale = choose_qparams(-largest, largest / 2, bits, scheme="pow2_scale").scale
            assert scale == above * 2.0**power and scale * steps >= largest
    nearest = [
        float(choose_qparams(*ends(0.0, factor * steps), bits, scheme="pow2_scale", pow2_round="nearest").scale)
        for factor in (1.0, 1.41, 1.42, 1.9)
    ]
    assert nearest == [1, 1, 2, 2]
    with pytest.raises(UserError, match="ceil"):
        choose_qparams(*ends(0.0, 1.0), bits, scheme="pow2_scale", pow2_round="up")


def test_fixed_point():
    qparams = fixed_point_qparams(8)
    assert qparams.scale == 1 / 128 and (qparams.quant_min, qparams.quant_max) == (-128, 127)
    assert fixed_point_qparams(8, 4).scale == 1 / 16 and fixed_point_qparams(4, -2).scale == 4
    assert quantize_affine(torch.tensor([-1.0, 0.999, 5.0]), qparams).tolist() == [-128, 127, 127]


def test_scale_factors_at_the_edges():
    for low, high in ((0.0, 0.0), (0.0, 1e-45), (-1e-45, 0.0)):
        if low == high:
            with pytest.raises(UserError, match="constant 0"):
                scale_factors(*ends(low, high), 8)
        else:
            assert torch.isfinite(scale_factors(*ends(low, high), 8))
    assert scale_factors(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 0.5]), 8).tolist() == [1, 128]
    for bits in (1, 17):
        with pytest.raises(UserError, match="2 to 16"):
            scale_factors(*ends(-1.0, 1.0), bits)


def test_unknown_grids_list_the_choices():
    with pytest.raises(UserError, match="Did you mean symmetric"):
        choose_qparams(*ends(-1.0, 1.0), 8, scheme="symetric")
