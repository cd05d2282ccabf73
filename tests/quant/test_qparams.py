"""Scale and zero point, by hand and at the edges."""

from __future__ import annotations

import pytest
import torch

from qexp.base.errors import UserError
from qexp.quant.affine import quantize_affine
from qexp.quant.qparams import MIN_SCALE, choose_qparams


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
    qparams = choose_qparams(*ends(-1.0, 2.0), 8, symmetric=True)
    assert qparams.scale == torch.tensor(2 / 127) and qparams.zero_point == 0
    assert (qparams.quant_min, qparams.quant_max) == (-127, 127)
    ternary = choose_qparams(*ends(-1.0, 2.0), 2, symmetric=True)
    assert quantize_affine(torch.tensor([-2.0, -0.9, 0.1, 2.0]), ternary).tolist() == [-1, 0, 0, 1]


def test_one_bit():
    qparams = choose_qparams(*ends(-1.0, 3.0), 1)
    assert quantize_affine(torch.tensor([-1.0, 0.0, 3.0]), qparams).unique().numel() == 2
    with pytest.raises(UserError, match="2 to 16"):
        choose_qparams(*ends(-1.0, 3.0), 1, symmetric=True)


@pytest.mark.parametrize("symmetric", [False, True])
def test_channels(symmetric):
    low, high = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([2.0, 0.0, 0.5])
    qparams = choose_qparams(low, high, 8, symmetric=symmetric, axis=0)
    alone = choose_qparams(low[0], high[0], 8, symmetric=symmetric)
    assert qparams.axis == 0 and qparams.scale[0] == alone.scale and qparams.zero_point[0] == alone.zero_point
    assert qparams.scale[1] == 1, "a channel of zeros"
    assert qparams.scale.dtype == qparams.zero_point.dtype == torch.float32


@pytest.mark.parametrize("symmetric", [False, True])
def test_range_at_the_edges_of_float32(symmetric):
    tiny = choose_qparams(*ends(-1e-44, 1e-44), 8, symmetric=symmetric)
    assert tiny.scale == MIN_SCALE and torch.isfinite(tiny.scale.reciprocal())
    wide = choose_qparams(*ends(-3e38, 3e38), 8, symmetric=symmetric)
    assert torch.isfinite(wide.scale)
    with pytest.raises(UserError, match="constant 0"):
        choose_qparams(*ends(0.0, 0.0), 8, symmetric=symmetric)


def test_overflowing_scale_raises():
    with pytest.raises(UserError, match="scale float32 holds"):
        choose_qparams(*ends(-3e38, 3e38), 1)
