"""DoReFa-Net's quantizers against the scheme, plain autograd and finite differences."""

from __future__ import annotations

import pytest
import torch

from qexp.base.types import QuantSpec
from qexp.quant import gradient_blocks
from qexp.quant.gradients_dorefa import quantize_dorefa_weight
from qexp.quant.schemes import quantize_


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaf(value: torch.Tensor) -> torch.Tensor:
    return value.clone().requires_grad_()


def reference(w: torch.Tensor, bits: int) -> torch.Tensor:
    """The formula, with its rounding detached."""
    tanh, levels = torch.tanh(w), 2**bits - 1
    unit = tanh / (2 * tanh.abs().amax()) + 0.5
    return 2 * (unit + ((unit * levels).round() / levels - unit).detach()) - 1


@pytest.mark.parametrize("block", [7, 1 << 16])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (1001,), (1, 1)])
def test_weights_are_the_scheme(shape, bits, block, monkeypatch):
    monkeypatch.setattr(gradient_blocks, "BLOCK", block)
    for w in (normal(*shape) * 0.3, normal(*shape, seed=1) * 20, normal(*shape, dtype=torch.bfloat16)):
        expected = quantize_(torch.empty_like(w), w, QuantSpec(scheme="dorefa", bits=bits))
        assert torch.equal(quantize_dorefa_weight(w, bits), expected)
    w = normal(4, 6, 5, 3).to(memory_format=torch.channels_last)
    quantized = quantize_dorefa_weight(w, bits)
    assert quantized.stride() == w.stride() and torch.equal(quantized, quantize_dorefa_weight(w.contiguous(), bits))


@pytest.mark.parametrize("block", [7, 1 << 16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_of_weights_is_plain_autograd(bits, block, monkeypatch):
    monkeypatch.setattr(gradient_blocks, "BLOCK", block)
    for w in (normal(8, 4, 3, 3), normal(8, 4, 3, 3).to(memory_format=torch.channels_last), normal(4, 8, 3, 3).transpose(0, 1)):
        weight, reference_weight, grad = leaf(w), leaf(w), normal(8, 4, 3, 3, seed=1)
        quantize_dorefa_weight(weight, bits).backward(grad)
        reference(reference_weight, bits).backward(grad)
        torch.testing.assert_close(weight.grad, reference_weight.grad, rtol=1e-4, atol=1e-5)


def test_largest_weights_share_the_gradient_of_the_maximum():
    w, grad = torch.tensor([0.7, -0.7, 0.2, 0.7, 0.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    weight, reference_weight = leaf(w), leaf(w)
    quantize_dorefa_weight(weight, 4).backward(grad)
    reference(reference_weight, 4).backward(grad)
    torch.testing.assert_close(weight.grad, reference_weight.grad)
    alone = leaf(torch.tensor([0.7, 0.2]))
    quantize_dorefa_weight(alone, 4).backward(torch.tensor([1.0, 0.0]))
    assert alone.grad.abs().max() < 1e-6, "an end of the range stays where it is"


def test_finite_differences_of_the_weights_surrogate():
    """Without its rounding, which is straight through, the quantizer is tanh(w) / max|tanh w|."""
    w, grad, h = normal(30, dtype=torch.float64), normal(30, seed=1, dtype=torch.float64), 1e-6
    weight = leaf(w)
    quantize_dorefa_weight(weight, 4).backward(grad)

    def loss(w):
        return (grad * torch.tanh(w) / torch.tanh(w).abs().max()).sum()

    steps = torch.eye(30, dtype=torch.float64) * h
    expected = torch.stack([(loss(w + step) - loss(w - step)) / (2 * h) for step in steps])
    torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    w, grad = normal(500, dtype=dtype), normal(500, seed=1, dtype=dtype)
    for bits in (1, 3):
        weight, single = leaf(w), leaf(w.float())
        quantized, expected = quantize_dorefa_weight(weight, bits), quantize_dorefa_weight(single, bits)
        quantized.backward(grad)
        expected.backward(grad.float())
        assert quantized.dtype == weight.grad.dtype == dtype
        assert torch.equal(quantized, expected.to(dtype)) and torch.equal(weight.grad, single.grad.to(dtype))


def test_gradients_at_one_bit_and_at_zero():
    for w, bits in ((normal(20), 1), (torch.zeros(20), 1)):
        weight, grad = leaf(w), normal(20, seed=1)
        quantize_dorefa_weight(weight, bits).backward(grad)
        assert torch.equal(weight.grad, grad)
    zero = leaf(torch.zeros(20))
    quantize_dorefa_weight(zero, 2).sum().backward()
    assert zero.grad.isfinite().all()


def test_only_the_weights_are_kept():
    w, kept = leaf(normal(8, 4, 3, 3)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        quantize_dorefa_weight(w, 4)
    large = [saved for saved in kept if saved.numel() > 1]
    assert len(large) == 1 and large[0].data_ptr() == w.data_ptr()


# torch's compiler uses what torch deprecates: instances of autograd.Function.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("bits", [1, 3])
def test_compiles_whole(bits):
    torch._dynamo.reset()

    def function(w):
        return quantize_dorefa_weight(w, bits)

    weight, eager_weight = leaf(normal(4, 3, 3, 3)), leaf(normal(4, 3, 3, 3))
    quantized, expected = torch.compile(function, backend="aot_eager", fullgraph=True)(weight), function(eager_weight)
    assert torch.equal(quantized, expected)
    quantized.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(weight.grad, eager_weight.grad)
