"""Gradients against finite differences of their surrogates, torch's own learnable quantizer, and plain autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.base.types import QParams
from qexp.quant import gradient_blocks
from qexp.quant.affine import expand, fake_quantize_affine
from qexp.quant.gradients import (
    MASKS,
    fake_quantize_learned,
    fake_quantize_ste,
    offset_zero_point,
)
from qexp.quant.gradients_pact import quantize_clipped
from qexp.quant.scheme_table import code_range

LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda x: torch.cat([x, x], 3)[..., ::2].contiguous().repeat_interleave(2, 3)[..., ::2],
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaf(value: torch.Tensor | float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.as_tensor(value, dtype=dtype).clone().requires_grad_()


def straight_through(steps: torch.Tensor, low, high, mask: str) -> torch.Tensor:
    """Codes whose gradient plain autograd finds: the clamp's for `paper`, the clamp's half a step further out for `rounded`."""
    slack = 0.5 if mask == "rounded" else 0.0
    clamped = torch.minimum(torch.maximum(steps, torch.as_tensor(low - slack)), torch.as_tensor(high + slack))
    codes = torch.minimum(torch.maximum(steps.round(), torch.as_tensor(low)), torch.as_tensor(high))
    return clamped + (codes - clamped).detach()


def scaled_gradient(parameter: torch.Tensor, factor: float) -> torch.Tensor:
    return parameter * factor + (parameter * (1 - factor)).detach()


def through_rounding(offset, scale, low, high) -> torch.Tensor:
    """The zero point of LSQ+ with its gradient: straight through R(-b / s), to the offset alone where the codes end before it."""
    steps = -offset / scale
    rounded = steps.detach().round().clamp(low, high)
    held = -offset / scale.detach()
    steps = torch.where(rounded == steps.detach().round(), steps, held)
    return steps + (rounded - steps).detach()


def reference(x, scale, zero_point, low, high, mask, factor=1.0, offset=None, axis=None) -> torch.Tensor:
    """LSQ and LSQ+ written with detach: s (R(clamp(x / s + z, n, p)) - z), both roundings straight through."""
    scale = expand(scaled_gradient(scale, factor), axis, x)
    zero_point = expand(torch.as_tensor(zero_point, dtype=x.dtype), axis, x)
    if offset is not None:
        zero_point = through_rounding(expand(scaled_gradient(offset, factor), axis, x), scale, low, high)
    return (straight_through(x / scale + zero_point, float(low), float(high), mask) - zero_point) * scale


def gradients(output: torch.Tensor, grad: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output, inputs, grad.to(output.dtype))


# --- forward ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [7, 1 << 16])
@pytest.mark.parametrize(("axis", "zero_point"), [(None, 0), (None, 3), (0, 0), (1, 0), (1, 2), (-1, 2)])
def test_forward_is_the_affine_quantizer(axis, zero_point, block, layout, monkeypatch):
    monkeypatch.setattr(gradient_blocks, "BLOCK", block)
    x = LAYOUTS[layout](normal(6, 5, 3, 4))
    shape = () if axis is None else (x.shape[axis],)
    scale = torch.full(shape, 0.31) + 0.05 * torch.arange(max(1, sum(shape))).reshape(shape)
    zeros = torch.full(shape, float(zero_point)) + (torch.arange(sum(shape)) % 2 if shape and zero_point else 0)
    expected = fake_quantize_affine(x, QParams(scale, zeros, -8, 7, axis))
    for mask in MASKS:
        quantized = fake_quantize_ste(x, scale, zeros, -8, 7, axis=axis, mask=mask)
        assert torch.equal(quantized, expected) and quantized.stride() == torch.empty_like(x).stride()
    learned = fake_quantize_learned(
        x, scale, quant_min=-8, quant_max=7, gradient_factor=0.1, axis=axis, offset=-zeros * scale * 1.0001
    )
    assert torch.equal(learned, expected)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_forward_of_the_clipped_is_the_affine_quantizer(bits, signed):
    x, alpha = normal(1000), torch.tensor(1.37)
    low, high = code_range("symmetric_restricted" if signed else "unsigned_symmetric", bits)
    qparams = QParams(alpha / torch.tensor(float(high)), torch.tensor(0.0), low, high)
    assert torch.equal(quantize_clipped(x, alpha, bits, signed=signed), fake_quantize_affine(x, qparams))


@pytest.mark.parametrize("offset", [0.6, 0.0, -0.9, -100.0])
def test_zero_is_on_the_grid_of_lsq_plus(offset):
    scale = torch.tensor(0.2)
    x = torch.cat([torch.zeros(1), normal(100)])
    zero_point = offset_zero_point(torch.tensor(offset), scale, 0, 15)
    quantized = fake_quantize_learned(x, scale, quant_min=0, quant_max=15, gradient_factor=1.0, offset=torch.tensor(offset))
    assert quantized[0] == 0 and 0 <= zero_point <= 15 and zero_point == zero_point.round()
    assert torch.equal(quantized, fake_quantize_affine(x, QParams(scale, zero_point, 0, 15)))


# --- gradients ---


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("low", "high", "zero_point"), [(-2, 1, 0), (0, 3, 1), (0, 15, 15), (-7, 7, 0)])
def test_finite_differences_of_the_surrogate(low, high, zero_point, mask):
    """The surrogate at (x, s, b): (clamp((x - b) / s, n, p) + e) s + b, where e is what rounding added at the point itself."""
    scale, slack, h = 0.37, 0.5 * (mask == "rounded"), 1e-6
    point = normal(500, dtype=torch.float64) * scale * high
    offset = -zero_point * scale

    def clamped(x, scale, offset):
        return torch.clamp((x - offset) / scale, low - slack, high + slack)

    steps = (point - offset) / scale
    error = steps.round().clamp(low, high) - clamped(point, scale, offset)

    def surrogate(x, scale, offset):
        return (clamped(x, scale, offset) + error) * scale + offset

    kinks = torch.minimum((steps - (low - slack)).abs(), (steps - (high + slack)).abs()) < 1e-4
    assert not kinks.any(), "differences do not straddle a kink"
    x, s, b = leaf(point, torch.float64), leaf(scale, torch.float64), leaf(offset, torch.float64)
    output = fake_quantize_learned(x, s, quant_min=low, quant_max=high, gradient_factor=0.25, mask=mask, offset=b)
    torch.testing.assert_close(output.detach(), surrogate(point, scale, offset))
    grad = normal(500, seed=1, dtype=torch.float64)
    computed = gradients(output, grad, x, s, b)
    expected = [(surrogate(point + h, scale, offset) - surrogate(point - h, scale, offset)) / (2 * h) * grad]
    for up, down in (((scale + h, offset), (scale - h, offset)), ((scale, offset + h), (scale, offset - h))):
        difference = (surrogate(point, *up) - surrogate(point, *down)) / (2 * h)
        expected.append(0.25 * (difference * grad).sum())
    for gradient, difference in zip(computed, expected, strict=True):
        torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=1e-6)
    straight = fake_quantize_ste(x, torch.tensor(scale, dtype=torch.float64), zero_point, low, high, mask=mask)
    torch.testing.assert_close(gradients(straight, grad, x)[0], expected[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (-128, 127), (0, 3)])
def test_rounded_is_torchs_learnable_per_tensor(low, high):
    x, grad = leaf(normal(50_000) * high / 30), normal(50_000, seed=1)
    scale, torch_scale = leaf(0.0371), leaf([0.0371])
    expected = torch._fake_quantize_learnable_per_tensor_affine(x, torch_scale, torch.zeros(1), low, high, 0.5)
    quantized = fake_quantize_learned(x, scale, quant_min=low, quant_max=high, gradient_factor=0.5, mask="rounded")
    assert torch.equal(quantized, expected)
    (grad_x, grad_scale), (torch_grad_x, torch_grad_scale) = (
        gradients(quantized, grad, x, scale),
        gradients(expected, grad, x, torch_scale),
    )
    assert torch.equal(grad_x, torch_grad_x) and not torch.equal(grad_x, grad)
    torch.testing.assert_close(grad_scale, torch_grad_scale[0], rtol=1e-4, atol=1e-2)
    straight = fake_quantize_ste(x, torch.tensor(0.0371), 0, low, high)
    torchs = torch.fake_quantize_per_tensor_affine(x, torch.tensor(0.0371), torch.tensor(0, dtype=torch.int32), low, high)
    assert torch.equal(gradients(straight, grad, x)[0], gradients(torchs, grad, x)[0])


def test_lsq_plus_and_torchs_zero_point():
    """Torch's zero point moves codes, the offset values: d/dz = -s d/doffset, and torch's clamped ends are n - z and p - z."""
    x, grad, zero_point = leaf(normal(5000)), normal(5000, seed=1), 3.0
    scale, offset, torch_scale, zeros = leaf(0.13), leaf(-0.13 * zero_point), leaf([0.13]), leaf([zero_point])
    expected = torch._fake_quantize_learnable_per_tensor_affine(x, torch_scale, zeros, 0, 15, 1.0)
    quantized = fake_quantize_learned(x, scale, quant_min=0, quant_max=15, gradient_factor=1.0, mask="rounded", offset=offset)
    assert torch.equal(quantized, expected)
    ours, torchs = gradients(quantized, grad, x, scale, offset), gradients(expected, grad, x, torch_scale, zeros)
    assert torch.equal(ours[0], torchs[0])
    torch.testing.assert_close(ours[1] - zero_point * ours[2], torchs[1][0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours[2] * -0.13, torchs[2][0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_rounded_is_torchs_learnable_per_channel(axis):
    x, grad = leaf(normal(12, 7, 5, 6)), normal(12, 7, 5, 6, seed=1)
    start = 0.1 + 0.05 * torch.arange(x.shape[axis])
    scale, torch_scale = leaf(start), leaf(start)
    expected = torch._fake_quantize_learnable_per_channel_affine(x, torch_scale, torch.zeros_like(start), axis, -4, 3, 0.5)
    quantized = fake_quantize_learned(x, scale, quant_min=-4, quant_max=3, gradient_factor=0.5, axis=axis, mask="rounded")
    assert torch.equal(quantized, expected)
    (grad_x, grad_scale), (torch_grad_x, torch_grad_scale) = (
        gradients(quantized, grad, x, scale),
        gradients(expected, grad, x, torch_scale),
    )
    assert torch.equal(grad_x, torch_grad_x)
    torch.testing.assert_close(grad_scale, torch_grad_scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [7, 100, 1 << 16])
@pytest.mark.parametrize(("axis", "plus"), [(None, False), (None, True), (0, False), (1, False), (1, True), (-1, True)])
def test_plain_autograd_in_every_layout(axis, plus, block, layout, mask, monkeypatch):
    monkeypatch.setattr(gradient_blocks, "BLOCK", block)
    x, grad = LAYOUTS[layout](normal(6, 5, 3, 4)).requires_grad_(), normal(4, 3, 5, 6, seed=1).permute(3, 2, 1, 0)
    channels = 1 if axis is None else x.shape[axis]
    shape = () if axis is None else (channels,)
    # powers of two: dividing by them and multiplying with their inverses is the same
    scale = leaf(torch.tensor([0.25, 0.5, 0.125, 1.0, 0.25, 0.5])[:channels].reshape(shape))
    zeros = (torch.arange(channels) % 3 + 1.0).reshape(shape) if plus else torch.zeros(shape)
    offset = leaf(-(zeros + 0.3) * scale.detach()) if plus else None
    quantized = fake_quantize_learned(
        x, scale, quant_min=0, quant_max=7, gradient_factor=0.3, axis=axis, mask=mask, offset=offset
    )
    expected = reference(x, scale, zeros, 0, 7, mask, 0.3, offset, axis)
    inputs = (x, scale, offset) if plus else (x, scale)
    computed = gradients(quantized, grad, *inputs)
    assert computed[0].stride() == torch.empty_like(x).stride()
    for gradient, autograd in zip(computed, gradients(expected, grad, *inputs), strict=True):
        torch.testing.assert_close(gradient, autograd, rtol=1e-5, atol=1e-5)
    straight = fake_quantize_ste(x, scale, zeros, 0, 7, axis=axis, mask=mask)
    assert torch.equal(gradients(straight, grad, x)[0], computed[0])


TIES = st.lists(st.integers(-40, 40), min_size=1, max_size=40)


@given(halves=TIES, bits=st.integers(2, 5), signed=st.booleans(), zero_point=st.integers(-3, 3), power=st.integers(-8, 3))
def test_masks_at_ties_and_ends(halves, bits, signed, zero_point, power):
    """Every half step, the ends and their ties among them; scales that are powers of two make v exact."""
    low, high = code_range("affine" if signed else "unsigned_symmetric", bits)
    scale, v = torch.tensor(2.0**power), torch.tensor(halves) / 2
    x = leaf(v * scale)
    expected = {
        "rounded": (v.round() + zero_point >= low) & (v.round() + zero_point <= high),
        "paper": (v + zero_point > low) & (v + zero_point < high),
    }
    for mask in MASKS:
        for zero in (float(zero_point), torch.tensor(float(zero_point))):
            quantized = fake_quantize_ste(x, scale, zero, low, high, mask=mask)
            assert torch.equal(gradients(quantized, torch.ones(len(v)), x)[0], expected[mask].float())
        zeros = torch.tensor([float(zero_point), 0.0])
        quantized = fake_quantize_ste(x[:, None].expand(-1, 2), scale.expand(2), zeros, low, high, mask=mask, axis=1)[:, 0]
        assert torch.equal(gradients(quantized, torch.ones_like(quantized), x)[0], expected[mask].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limits", [(-8.0, 7.0), (0.0, 3.0), (-3.0, -2.0), (-1.0, 0.0), (1.0, 65535.0)])
def test_rounded_limits_enclose_what_rounds_inside(limits, dtype):
    for low, high in (limits, tuple(torch.tensor(limit, dtype=dtype) for limit in limits)):
        below, above = gradient_blocks.rounded_limits(low, high, dtype)
        edges = torch.tensor([limits[0] - 0.5, limits[1] + 0.5], dtype=dtype)
        near = torch.cat([torch.nextafter(edges, edges - 1), edges, torch.nextafter(edges, edges + 1)])
        inside = (near.round() >= limits[0]) & (near.round() <= limits[1])
        assert torch.equal((near > below) & (near < above), inside)


@pytest.mark.parametrize("block", [7, 1 << 16])
def test_pact_by_hand(block, monkeypatch):
    monkeypatch.setattr(gradient_blocks, "BLOCK", block)
    x, alpha = leaf([-3.0, -1.5, -0.1, -0.0, 0.0, 0.1, 1.49, 1.5, 1.51, 9.0]), leaf([1.5])
    grad = torch.arange(1.0, 11.0)
    computed = gradients(quantize_clipped(x, alpha, 3), grad, x, alpha)
    assert computed[0].tolist() == [0, 0, 0, 4, 5, 6, 7, 0, 0, 0] and computed[1].tolist() == [8 + 9 + 10]
    computed = gradients(quantize_clipped(x, alpha, 3, signed=True), grad, x, alpha)
    assert computed[0].tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0, 0] and computed[1].tolist() == [8 + 9 + 10 - 1 - 2]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("signed", [False, True])
def test_pact_is_plain_autograd_of_its_clip(signed, mask):
    x, alpha, grad = leaf(normal(3000)), leaf(1.1), normal(3000, seed=1)
    low, high = code_range("symmetric_restricted" if signed else "unsigned_symmetric", 3)
    edge = alpha * (1 + 0.5 / high) if mask == "rounded" else alpha  # where what rounds to the last code ends
    bottom = -edge if signed else torch.tensor(-0.5 * 1.1 / high if mask == "rounded" else 0.0)
    clipped = torch.minimum(torch.maximum(x, bottom), edge)
    # In the rounded form the clip is half a step wider, but alpha still moves what is clipped by its own change.
    expected = gradients(clipped, grad, x, alpha)
    share = float((1 + 0.5 / high) if mask == "rounded" else 1.0)
    computed = gradients(quantize_clipped(x, alpha, 3, signed=signed, mask=mask), grad, x, alpha)
    torch.testing.assert_close(computed[0], expected[0])
    torch.testing.assert_close(computed[1], expected[1] / share, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signed", [False, True])
def test_pact_finite_differences(signed):
    point, grad, alpha, h = normal(400, dtype=torch.float64), normal(400, seed=1, dtype=torch.float64), 0.9, 1e-6

    def clip(x, alpha):
        return torch.clamp(x, -alpha if signed else 0.0, alpha)

    x, a = leaf(point, torch.float64), leaf(alpha, torch.float64)
    computed = gradients(quantize_clipped(x, a, 4, signed=signed), grad, x, a)
    torch.testing.assert_close(
        computed[0], grad * (clip(point + h, alpha) - clip(point - h, alpha)) / (2 * h), rtol=1e-6, atol=1e-6
    )
    expected = (grad * (clip(point, alpha + h) - clip(point, alpha - h))).sum() / (2 * h)
    torch.testing.assert_close(computed[1], expected, rtol=1e-6, atol=1e-6)
