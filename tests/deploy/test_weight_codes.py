"""Weights and biases as codes: those of the simulation, and nothing that is off its grid."""

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.deploy.weight_codes import accumulator_scale, bias_codes, codes_of, has_codes, weight_codes
from qexp.quant.schemes import quantize_


def weight(seed=0):
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric", "symmetric_restricted", "pow2_scale", "fixed_point"])
@pytest.mark.parametrize("bits", [3, 8, 16])
def test_codes_are_the_simulations(scheme, granularity, bits):
    if scheme == "fixed_point":
        granularity = "per_tensor"
    spec, source = QuantSpec(scheme=scheme, bits=bits, granularity=granularity), weight()
    coded = weight_codes(source, spec)
    expected = quantize_(torch.empty_like(source), source, spec)
    assert has_codes(spec) and torch.equal(coded.values, expected)
    assert coded.codes.min() >= coded.qparams.quant_min and coded.codes.max() <= coded.qparams.quant_max
    read = codes_of("conv.weight", expected, coded.qparams)
    assert torch.equal(read.codes, coded.codes)


def test_values_off_the_grid_are_refused_by_name():
    coded = weight_codes(weight(), QuantSpec(scheme="affine", bits=8))
    values = coded.values
    values[0, 0, 0, 0] += 0.3 * coded.qparams.scale
    with pytest.raises(UserError, match=r"conv\.weight=1 values off their grid"):
        codes_of("conv.weight", values, coded.qparams)


@pytest.mark.parametrize(
    "fields", [{"scheme": "linear"}, {"scheme": "apot"}, {"granularity": "per_group", "group_size": 4}], ids=str
)
def test_other_schemes_have_no_codes_in_a_file(fields):
    assert not has_codes(QuantSpec(**{"scheme": "affine", "bits": 8, **fields}))


def test_a_bias_is_rounded_to_the_accumulators_step():
    coded = weight_codes(weight(), QuantSpec(scheme="symmetric_restricted", bits=8, granularity="per_channel"))
    scale = accumulator_scale(weight_codes(weight(1), QuantSpec(scheme="affine", bits=8)).qparams, coded.qparams)
    bias = torch.linspace(-2, 2, 6)
    codes = bias_codes(bias, scale)
    assert codes.dtype == torch.int32 and ((codes * scale - bias).abs() <= 0.5001 * scale).all()
    assert bias_codes(bias, scale * 1e-9) is None
