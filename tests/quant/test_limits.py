"""A range from outside: what lies inside keeps its place, what lies outside goes to the end."""

from __future__ import annotations

import math

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_

CLIPPED = SCHEMES.names_where(lambda row: row.clipped)
LIMITS = (torch.tensor(-1.0), torch.tensor(1.5))


@pytest.mark.parametrize("mode", ["int", "float"])
@pytest.mark.parametrize("scheme", CLIPPED)
def test_limits_take_the_place_of_the_range(scheme, mode):
    """What lies inside is quantized as if the tensor ended there; what lies outside goes where the end goes."""
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 2
    x[0], x[1] = LIMITS
    inside = x.clamp(*LIMITS)
    spec = QuantSpec(scheme=scheme, bits=4, mode=mode)
    expected = quantize_(torch.empty_like(x), inside, spec)
    quantized = quantize_(torch.empty_like(x), x, spec, limits=LIMITS)
    ends = SCHEMES[scheme].ends
    at_limits = quantize_(torch.empty(2), torch.stack(LIMITS), spec, limits=LIMITS)
    farthest = quantize_(torch.empty(2), torch.tensor([-1e30, 1e30]), spec, limits=LIMITS)
    assert farthest.tolist() == [quantized.min(), quantized.max()]
    same = x == inside  # of a grid that ends beyond a limit; of others all that lies outside goes where the limit goes,
    if at_limits[1] == farthest[1] and (ends != "both" or at_limits[0] == farthest[0]):
        # but a symmetric grid ends at -1.5: what lies between -1.5 and -1 keeps its place
        same = (x >= LIMITS[0]) if ends == "magnitude" else torch.ones_like(x) > 0
    assert torch.equal(quantized[same], expected[same])


@pytest.mark.parametrize("scheme", CLIPPED)
def test_limits_of_each_group(scheme):
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([-1.0, -0.5, -2.0, -0.1]), torch.tensor([1.0, 0.7, 0.3, 2.0])
    for settings in ({"granularity": "per_channel"}, {"granularity": "per_group", "group_size": 40}):
        quantized = quantize_(torch.empty_like(x), x, QuantSpec(scheme=scheme, bits=3, **settings), limits=(low, high))
        for row, out, *ends in zip(x, quantized, low, high, strict=True):
            assert torch.equal(out, quantize_(torch.empty_like(row), row, QuantSpec(scheme=scheme, bits=3), limits=tuple(ends)))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in CLIPPED])
def test_schemes_without_a_clipping_range_refuse_limits(scheme):
    spec = QuantSpec(scheme=scheme, bits=min(max(4, SCHEMES[scheme].min_bits), SCHEMES[scheme].max_bits))
    with pytest.raises(UserError, match=f"{scheme} has no clipping range"):
        quantize_(torch.empty(9), torch.randn(9), spec, limits=LIMITS)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ((torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])), "4 groups"),
        ((torch.tensor(-1.0), torch.tensor(1.0)), "4 groups"),
        ((torch.zeros(4), torch.full((4,), math.nan)), "NaN"),
        ((torch.ones(4), torch.zeros(4)), "minimum above maximum"),
    ],
)
def test_limits_that_do_not_fit(limits, words):
    with pytest.raises(UserError, match=words):
        quantize_(
            torch.empty(4, 9), torch.randn(4, 9), QuantSpec(scheme="linear", bits=4, granularity="per_channel"), limits=limits
        )
