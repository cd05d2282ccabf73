"""The integer layer: against sums in Python's integers, against ONNX Runtime's kernels, and fixed point against rationals."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import QParams, QuantSpec
from qexp.deploy.integer_layer import accumulate, fixed_point, integer_layer, requantize
from qexp.deploy.weight_codes import WeightCodes, accumulator_scale, bias_codes, weight_codes
from qexp.quant.affine import quantize_affine
from qexp.quant.qparams import choose_qparams


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coded(x, **fields):
    qparams = choose_qparams(x.min(), x.max(), 8, **fields)
    return quantize_affine(x, qparams).int(), qparams


CONVS = {
    "plain": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1},
    "strided": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
    "grouped": {"in_channels": 4, "out_channels": 8, "kernel_size": (1, 3), "groups": 4, "padding": (0, 1)},
}


@pytest.mark.parametrize("scheme", ["symmetric_restricted", "affine"])
@pytest.mark.parametrize("name", CONVS)
def test_accumulators_are_integer_sums(name, scheme):
    layer = nn.Conv2d(**CONVS[name])
    granularity = "per_channel" if scheme == "symmetric_restricted" else "per_tensor"
    weight = weight_codes(draw(*layer.weight.shape, seed=1), QuantSpec(scheme=scheme, bits=8, granularity=granularity))
    codes, x = coded(draw(2, 4, 7, 6) + 0.7)
    bias = torch.arange(layer.out_channels, dtype=torch.int32) * 1000 - 2500
    sums = accumulate(layer, codes, x, weight, bias)
    values = np.pad(codes.numpy().astype(object) - int(x.zero_point), [(0, 0), (0, 0), *((p, p) for p in layer.padding)])
    kernel = weight.codes.numpy().astype(object) - int(weight.qparams.zero_point.flatten()[0])
    per_group = layer.out_channels // layer.groups
    inputs = layer.in_channels // layer.groups
    for (n, o, i, j), value in np.ndenumerate(sums.numpy()):
        first = o // per_group * inputs
        rows = slice(i * layer.stride[0], i * layer.stride[0] + layer.dilation[0] * (kernel.shape[2] - 1) + 1, layer.dilation[0])
        columns = slice(
            j * layer.stride[1], j * layer.stride[1] + layer.dilation[1] * (kernel.shape[3] - 1) + 1, layer.dilation[1]
        )
        assert value == (values[n, first : first + inputs, rows, columns] * kernel[o]).sum() + int(bias[o])


def test_a_linear_layer_is_the_float_one_to_half_a_step():
    layer, values = nn.Linear(32, 5), draw(9, 32)
    weight = weight_codes(draw(5, 32, seed=1), QuantSpec(scheme="symmetric_restricted", bits=8, granularity="per_channel"))
    codes, x = coded(values)
    bias = torch.linspace(-1, 1, 5)
    steps = bias_codes(bias, accumulator_scale(x, weight.qparams))
    exact = ((codes - x.zero_point).double() * x.scale) @ weight.values.double().t() + bias.double()
    logits = integer_layer(layer, codes, x, weight, None, bias=steps)
    assert (logits - exact).abs().max() < 1e-3
    y = choose_qparams(exact.min(), exact.max(), 8)
    for requantization in ("float32", "fixed_point"):
        result = integer_layer(layer, codes, x, weight, y, bias=steps, requantization=requantization)
        assert (((result - y.zero_point) * y.scale - exact).abs() <= 0.51 * y.scale).all()
    clamped = integer_layer(layer, codes, x, weight, y, bias=steps, clamp=(0.0, 1.0))
    assert torch.equal(clamped, quantize_affine(logits.clamp(0, 1), y, arithmetic="divide").int())


def test_a_linear_layer_of_tokens_is_that_of_rows():
    layer, values = nn.Linear(6, 4), draw(2, 3, 6)
    weight = weight_codes(draw(4, 6, seed=1), QuantSpec(scheme="symmetric_restricted", bits=8, granularity="per_channel"))
    codes, x = coded(values)
    y, bias = choose_qparams(torch.tensor(-3.0), torch.tensor(3.0), 8), torch.arange(4, dtype=torch.int32) * 900
    for grid in (None, y):
        for requantization in ("float32", "fixed_point"):
            options = {"bias": bias, "requantization": requantization}
            rows = integer_layer(layer, codes.reshape(6, 6), x, weight, grid, **options)
            assert torch.equal(integer_layer(layer, codes, x, weight, grid, **options), rows.reshape(2, 3, 4))


@given(ratio=st.floats(1e-9, 1e6), sums=st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=20))
def test_fixed_point_is_the_rational_rounded_half_up(ratio, sums):
    multiplier, shift = fixed_point(torch.tensor(ratio, dtype=torch.float64))
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(int(multiplier), 2 ** int(shift)) / Fraction(ratio) - 1) <= Fraction(1, 2**30)
    y = QParams(torch.tensor(1.0), torch.tensor(3.0), -128, 127)
    scale = torch.tensor(ratio, dtype=torch.float64)
    codes = requantize(torch.tensor([sums]), scale, y, requantization="fixed_point")
    half_up = [(total * int(multiplier) * 2 + 2 ** int(shift)) // 2 ** (int(shift) + 1) for total in sums]
    assert codes.tolist() == [[min(max(step + 3, -128), 127) for step in half_up]]


def test_a_ratio_below_what_32_bits_can_show_gives_zero():
    y = QParams(torch.tensor(1.0), torch.tensor(0.0), -128, 127)
    sums = torch.tensor([[2**31 - 1, -(2**31) + 1, 0]])
    assert not requantize(sums, torch.tensor(1e-10), y, requantization="fixed_point").any()


def test_what_leaves_32_bits_is_an_error():
    layer = nn.Linear(40000, 1)
    weight = WeightCodes(torch.full((1, 40000), 127), QParams(torch.tensor(1.0), torch.tensor(0.0), -127, 127))
    x = QParams(torch.tensor(1.0), torch.tensor(-32768.0), -32768, 32767)
    with pytest.raises(UserError, match="accumulator=.*2\\^31 - 1"):
        accumulate(layer, torch.full((1, 40000), 32767), x, weight)
    with pytest.raises(UserError, match="one of fixed_point, float32"):
        requantize(torch.zeros(1, 1), torch.tensor(1.0), x, requantization="double")
    with pytest.raises(UserError, match="below 2\\^30"):
        fixed_point(torch.tensor(2.0**31))


def test_sums_beyond_what_float32_counts_are_exact():
    layer, grid = nn.Linear(600, 2), QParams(torch.tensor(1.0), torch.tensor(0.0), 0, 255)
    weight = WeightCodes(torch.full((2, 600), 127), QParams(torch.tensor(1.0), torch.tensor(0.0), -127, 127))
    weight.codes[0, -1] = 1
    codes = torch.full((1, 600), 255)
    codes[0, -1] = 1
    assert accumulate(layer, codes, grid, weight).tolist() == [[599 * 255 * 127 + 1, 599 * 255 * 127 + 127]]


def test_a_kernel_that_gives_fractions_is_not_believed(monkeypatch):
    def winograd(layer, values, matrix):
        return nn.functional.linear(values, matrix) + (0.25 if values.dtype == torch.float32 else 0)

    monkeypatch.setattr("qexp.deploy.integer_layer._sums", winograd)
    codes, x = coded(draw(3, 8))
    weight = weight_codes(draw(4, 8, seed=1), QuantSpec(scheme="symmetric_restricted", bits=8, granularity="per_channel"))
    expected = (codes.long() - x.zero_point.long()) @ weight.codes.long().t()
    assert torch.equal(accumulate(nn.Linear(8, 4), codes, x, weight).long(), expected)


class Chain(nn.Module):
    """Convolutions that each end in codes, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, groups=4)
        self.head = nn.Linear(16, 7)

    def forward(self, x):
        return self.head(self.conv2(torch.relu(self.conv1(x))).mean((2, 3)))


def test_onnx_runtimes_kernels_bit_for_bit(quantized, run_file, tmp_path):
    torch.manual_seed(0)
    case = quantized(Chain(), draw(32, 3, 12, 12))
    exported = case.export(tmp_path / "chain.onnx")
    ran = run_file(exported, case.images)
    assert ran.operators["QLinearConv"] == 2 and not ran.operators["Conv"]
    grids = {
        name: module.qparams for name, module in case.network.activation_fake_quant.named_modules() if hasattr(module, "qparams")
    }
    for name, source, target, clamp in (("conv1", "input", "relu", (0.0, None)), ("conv2", "relu", "conv2", None)):
        layer = case.network.get_submodule(name)
        weight = case.weights[f"{name}.weight"]
        bias = bias_codes(layer.bias, accumulator_scale(grids[source], weight.qparams))
        arguments = (layer, ran.codes[source], grids[source], weight, grids[target])
        result = integer_layer(*arguments, bias=bias, clamp=clamp)
        assert torch.equal(result, ran.codes[target])
        fixed = integer_layer(*arguments, bias=bias, clamp=clamp, requantization="fixed_point")
        assert (fixed - ran.codes[target]).abs().max() <= 1 and (fixed == ran.codes[target]).float().mean() > 0.999
    weight, x = case.weights["head.weight"], grids["mean"]
    bias = bias_codes(case.network.head.bias, accumulator_scale(x, weight.qparams))
    logits = integer_layer(case.network.head, ran.codes["mean"], x, weight, None, bias=bias)
    assert torch.allclose(logits, ran.logits, rtol=1e-6, atol=1e-6)
