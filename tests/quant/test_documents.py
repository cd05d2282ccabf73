"""The five documents' formulas, first as written, then as they should be, side by side.

Document 002's `linear_quantize` is in test_linear.py.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.encoding import encode
from qexp.quant.linear import linear_quantize
from qexp.quant.qparams import choose_qparams, scale_factors
from qexp.quant.scalar import dequantize_scalar, quantize_scalar
from qexp.quant.schemes import quantize_


def quantized(x: torch.Tensor, **spec) -> torch.Tensor:
    return quantize_(torch.empty_like(x), x, QuantSpec(**spec))


class TestDocument000:
    """Fixed point on one convolution."""

    @staticmethod
    def as_written(model):
        keys = model.state_dict().keys()
        for key in keys:
            model.state_dict()[key][:] = torch.div(
                torch.clamp(model.state_dict[key] * 128, min=-128, max=127), len(keys), rounding_mode="floor"
            )
        return model

    @staticmethod
    def with_the_call(model):
        keys = model.state_dict().keys()
        for key in keys:
            model.state_dict()[key][:] = torch.div(
                torch.clamp(model.state_dict()[key] * 128, min=-128, max=127), len(keys), rounding_mode="floor"
            )
        return model

    def test_it_lacks_a_call(self):
        with pytest.raises(TypeError, match="not subscriptable"):
            self.as_written(nn.Conv2d(3, 10, 1))

    def test_it_divides_by_the_number_of_tensors(self):
        """So its codes are Q1.6 of a format with 64 steps to one: the factor that it searches for is 128 / 2 tensors = 64."""
        torch.manual_seed(0)
        model = nn.Conv2d(3, 10, 1)
        codes = self.with_the_call(copy.deepcopy(model)).state_dict()
        for name, value in model.state_dict().items():
            spec = {"scheme": "fixed_point", "bits": 8, "rounding": "floor", "fraction_bits": 6}
            assert torch.equal(codes[name] / 64, quantized(value, **spec))

    def test_its_factor_has_a_closed_form(self):
        """At 64 every difference lies in [0, (3 + 1) / 64) for inputs in [0, 1], since floor errs to one side."""
        largest = 0.0
        for seed in range(50):
            torch.manual_seed(seed)
            model = nn.Conv2d(3, 10, 1)
            image = torch.rand(1, 3, 24, 24)
            with torch.no_grad():
                difference = model(image) - self.with_the_call(copy.deepcopy(model))(image) / 64
            assert difference.min() >= -1e-6 and difference.max() < 4 / 64
            largest = max(largest, float(difference.max()))
        assert 0.04 < largest < 4 / 64

    def test_as_meant(self):
        """Q1.7: floor(clip(128 x, -128, 127)) / 128; rounding to nearest takes the bias of half a step away."""
        x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.3
        floor = quantized(x, scheme="fixed_point", bits=8, rounding="floor")
        assert torch.equal(floor, torch.floor(torch.clamp(x * 128, min=-128, max=127)) / 128)
        inside = x.abs() < 0.99
        assert (floor - x)[inside].mean() * 128 == pytest.approx(-0.5, abs=0.02)
        assert (quantized(x, scheme="fixed_point", bits=8) - x)[inside].mean() * 128 == pytest.approx(0, abs=0.02)


class TestDocument001:
    """Asymmetric and symmetric."""

    @staticmethod
    def asymmetric(f_min, f_max, q_min, q_max):
        s = (f_max - f_min) / (q_max - q_min)
        o = q_min - min(f_min, 0) / s
        return s, o

    @staticmethod
    def fake_quantize(x, s, o, q_min, q_max):
        return ((x / s + o).round().clamp(q_min, q_max) - o) * s

    def test_the_scale_is_not_widened_to_zero_while_the_offset_is(self):
        x = torch.linspace(0.5, 2.0, 300)
        s, o = self.asymmetric(0.5, 2.0, 0, 255)
        assert (s, o) == (1.5 / 255, 0)
        written = self.fake_quantize(x, s, o, 0, 255)
        assert (written[x > 1.5] == 1.5).all() and written.max() == 1.5, "a third of the values clips"
        qparams = choose_qparams(x.min(), x.max(), 8)
        assert float(qparams.scale) == pytest.approx(2 / 255)
        assert (quantized(x, scheme="affine", bits=8) - x).abs().max() <= 2 / 255 / 2 * 1.001

    def test_the_offset_is_not_rounded(self):
        """So that zero is no code; `affine` rounds it."""
        s, o = self.asymmetric(-1.0, 2.0, 0, 255)
        assert o == pytest.approx(85.0)
        s, o = self.asymmetric(-1.0, 2.1, 0, 255)
        assert o != round(o) and self.fake_quantize(torch.tensor(0.0), s, o, 0, 255) != 0
        assert quantized(torch.tensor([-1.0, 0.0, 2.1]), scheme="affine", bits=8)[1] == 0

    def test_symmetric(self):
        """int8: o = 0; uint8: o = 128, the same grid."""
        x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
        s = max(x.max(), -x.min()) / ((127 - -128) / 2)
        signed = self.fake_quantize(x, s, 0, -128, 127)
        assert torch.equal(quantized(x, scheme="symmetric", bits=8, arithmetic="divide"), signed)
        unsigned = ((x / s).round() + 128).clamp(0, 255)
        assert torch.equal((unsigned - 128) * s, signed)

    def test_symmetric_scale_is_torchs_observers(self):
        from torch.ao.quantization.observer import MinMaxObserver

        x = torch.randn(500, generator=torch.Generator().manual_seed(0))
        observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        assert choose_qparams(x.min(), x.max(), 8, scheme="symmetric").scale == scale and zero_point == 0
        expected = torch.fake_quantize_per_tensor_affine(x, float(scale), 0, -128, 127)
        assert torch.equal(quantized(x, scheme="symmetric", bits=8), expected)


class TestDocument002:
    """The linear map in closed form, and what its prose does with `int()`."""

    @pytest.mark.parametrize("bits", [4, 8, 16])
    def test_closed_form(self, bits):
        """q = a (w - mid - D/2), a = (2^b - 1) / range, D = 1/a: an offset of half a step, and zero is no code."""
        w = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
        low, high = float(w.min()), float(w.max())
        a, mid = (2**bits - 1) / (high - low), (high + low) / 2
        closed = a * (w - mid - 1 / a / 2)
        assert torch.allclose(linear_quantize(w.float(), bits).double(), closed, atol=2.0**bits * 3e-7)
        at_zero = a * (-mid - 1 / a / 2)
        assert at_zero != round(at_zero)

    def test_int_truncates(self):
        w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        written = linear_quantize(w, 4).int().float()
        assert torch.equal(quantized(w, scheme="linear_raw", bits=4, rounding="trunc"), written)
        assert len(written.unique()) == 16 and (written == 0).sum() > 1.5 * (written == 1).sum(), "zero's cell is double"


class TestDocument003:
    """A scale factor for each kernel of each pair of channels."""

    @staticmethod
    def get_int_range(bits, signed):
        return (2 ** (bits - 1) - 1, -(2 ** (bits - 1))) if signed else (2**bits - 1, 0)

    @staticmethod
    def get_sf(signed, int_max, int_min, real_max, real_min):
        if signed:
            sf_max = np.divide(int_max, real_max, out=np.ones_like(real_max), where=(real_max != 0))
            sf_min = np.divide(int_min, real_min, out=np.ones_like(real_min), where=(real_min != 0))
            sf = np.minimum(np.abs(sf_min), np.abs(sf_max))
        else:
            sf = np.divide(int_max, real_max, out=np.ones_like(real_max), where=(real_max != 0))
            sf = np.abs(sf)
        return sf

    @staticmethod
    def quantize_numpy(org_vals, scale_factor, int_max, int_min):
        qvals = np.multiply(org_vals, scale_factor)
        qvals = np.minimum(int_max, qvals)
        qvals = np.maximum(int_min, qvals)
        qvals = np.round(qvals)
        return np.divide(qvals, scale_factor)

    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize("bits", [2, 4, 8, 16])
    @pytest.mark.parametrize("shape", [(8, 5, 3, 3), (8, 5, 1, 7)])
    def test_its_code_bit_for_bit(self, shape, bits, signed):
        """Weights in Keras' order, height, width, Cin, Cout; torch's is Cout, Cin, height, width."""
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
        keras = weight.permute(2, 3, 1, 0).numpy()
        high, low = np.amax(keras, axis=(0, 1)), np.amin(keras, axis=(0, 1))
        int_max, int_min = self.get_int_range(bits, signed)
        written = self.quantize_numpy(keras, self.get_sf(signed, int_max, int_min, high, low), int_max, int_min)
        ours = quantized(weight, scheme="scale_factor", bits=bits, signed=signed, granularity="per_in_out_channel")
        assert torch.equal(ours, torch.from_numpy(written).permute(3, 2, 0, 1))

    def test_negative_values_vanish_unsigned(self):
        x = torch.tensor([-2.0, -0.5, 0.25, 1.0])
        assert quantized(x, scheme="scale_factor", bits=8, signed=False).tolist() == pytest.approx([0, 0, 64 / 255, 1])
        with pytest.raises(UserError, match="no element above zero"):
            quantized(-x.abs(), scheme="scale_factor", bits=8, signed=False)

    def test_a_side_that_ends_at_zero(self):
        """As written it decides with f = 1, so that values from 0 to 1 become 0 or 1."""
        x = torch.linspace(0, 1, 300)
        written = self.get_sf(True, 127, -128, x.max().numpy()[None], x.min().numpy()[None])
        assert written == 1
        assert scale_factors(x.min(), x.max(), 8, as_written=True) == 1
        assert len(np.unique(self.quantize_numpy(x.numpy(), written, 127, -128))) == 2
        assert scale_factors(x.min(), x.max(), 8) == 127
        assert len(quantized(x, scheme="scale_factor", bits=8).unique()) == 128
        assert scale_factors(-x.max(), -x.min(), 8) == 128

    def test_the_side_that_decides_touches_its_limit(self):
        below, above = torch.tensor([-2.0, 1.0]), torch.tensor([-1.0, 2.0])
        assert encode(below, QuantSpec(scheme="scale_factor", bits=8)).codes.tolist() == [-128, 64]
        assert encode(above, QuantSpec(scheme="scale_factor", bits=8)).codes.tolist() == [-64, 127]


class TestDocument004:
    """The scalar quantizer."""

    @pytest.mark.parametrize(("bits", "code", "value"), [(4, 22, 3.142857142857143), (8, 399, 3.141732283464567)])
    def test_as_written(self, bits, code, value):
        """Pi is outside the range it claims, and 22 no 4-bit integer."""
        pi = 3.141592653589793
        assert np.round(pi * (2 ** (bits - 1) - 1)) == quantize_scalar(pi, bits, as_written=True) == code
        assert dequantize_scalar(code, bits) == value
        with pytest.raises(UserError, match="from -1 to 1"):
            quantize_scalar(pi, bits)

    def test_within_its_range_it_is_the_restricted_grid(self):
        x = torch.linspace(-1, 1, 1001, dtype=torch.float64)
        codes = encode(x, QuantSpec(scheme="symmetric_restricted", bits=6, arithmetic="divide")).codes.tolist()
        scalar = [quantize_scalar(value, 6) for value in x.tolist()]
        assert sum(a != b for a, b in zip(codes, scalar, strict=True)) <= 2, "but for ties in float32"
        assert all(
            abs(dequantize_scalar(code, 6) - value) <= 1 / 31 / 2 + 1e-9 for code, value in zip(scalar, x.tolist(), strict=True)
        )

    def test_refusals(self):
        for value in (math.nan, math.inf, 1.01):
            with pytest.raises(UserError, match="value"):
                quantize_scalar(value, 8)
        for bits in (1, 17):
            with pytest.raises(UserError, match="2 to 16"):
                quantize_scalar(0.5, bits)
