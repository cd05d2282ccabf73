"""Stochastic rounding through `quantize_`: a function of seed and values, unbiased."""

from __future__ import annotations

import math

import pytest
import torch

from qexp.base.types import QuantSpec
from qexp.quant.schemes import quantize_


def quantized(x: torch.Tensor, **spec) -> torch.Tensor:
    return quantize_(torch.empty_like(x), x, QuantSpec(**{"bits": 4, **spec}))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", ["linear", "affine", "fixed_point", "scale_factor", "dorefa"])
def test_stochastic_is_a_function_of_seed_and_values(scheme, granularity):
    x = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    spec = {
        "scheme": scheme,
        "bits": 4,
        "rounding": "stochastic",
        "granularity": granularity,
        "axis": 1 * (granularity == "per_channel"),
    }
    first = quantized(x, **spec, rounding_seed=5)
    torch.rand(10)
    assert torch.equal(quantized(x, **spec, rounding_seed=5), first)
    assert torch.equal(quantized(x.to(memory_format=torch.channels_last), **spec, rounding_seed=5), first)
    assert not torch.equal(quantized(x, **spec, rounding_seed=6), first)


def test_stochastic_error_is_below_a_step_and_unbiased():
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    step = x.abs().max() / 7
    error = quantized(x, scheme="symmetric_restricted", rounding="stochastic") - x
    assert error.abs().max() < step * 1.0001
    assert error.mean().abs() <= 4 * step / 2 / math.sqrt(len(x))
