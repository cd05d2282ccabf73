"""What a training needs of the quantizers: dtypes, empty batches, memory, compilation, devices, first values."""

from __future__ import annotations

import pytest
import torch

from qexp.base.errors import UserError
from qexp.quant import gradient_blocks
from qexp.quant.gradients import (
    fake_quantize_learned,
    fake_quantize_ste,
    gradient_factor,
    initial_scale,
    initial_weight_scale,
)
from qexp.quant.gradients_pact import quantize_clipped


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def leaf(value: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float32).clone().requires_grad_()


def gradients(output: torch.Tensor, grad: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output, inputs, grad.to(output.dtype))


def every_function():
    """Name -> function of (x, parameter), both of which want gradients."""
    return {
        "lsq": lambda x, p: fake_quantize_learned(x, p, quant_min=-4, quant_max=3, gradient_factor=0.1),
        "lsq_plus": lambda x, p: fake_quantize_learned(
            x, p, quant_min=0, quant_max=7, gradient_factor=0.1, mask="rounded", offset=-2 * p
        ),
        "pact": lambda x, p: quantize_clipped(x, p, 3),
        "pact_signed": lambda x, p: quantize_clipped(x, p, 3, signed=True, mask="rounded"),
        "ste": lambda x, p: fake_quantize_ste(x, p.detach(), 1, -4, 3) * p,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", every_function())
def test_half_precision_is_computed_in_float32(name, dtype):
    x, grad = normal(3, 5, 4, dtype=dtype).transpose(0, 1), normal(5, 3, 4, seed=1, dtype=dtype)
    function = every_function()[name]
    half, single, parameter, single_parameter = (
        x.clone().requires_grad_(),
        x.float().clone().requires_grad_(),
        leaf(0.5),
        leaf(0.5),
    )
    quantized, expected = function(half, parameter), function(single, single_parameter)
    if name != "ste":  # which multiplies outside
        assert quantized.dtype == dtype and torch.equal(quantized, expected.to(dtype))
        half_gradients, single_gradients = (
            gradients(quantized, grad, half, parameter),
            gradients(expected, grad.float(), single, single_parameter),
        )
        assert half_gradients[0].dtype == dtype and torch.equal(half_gradients[0], single_gradients[0].to(dtype))
        assert half_gradients[1].dtype == torch.float32
        torch.testing.assert_close(half_gradients[1], single_gradients[1])


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), ()])
@pytest.mark.parametrize("name", every_function())
def test_empty_and_single(name, shape):
    x, parameter = leaf(torch.full(shape, 0.3)), leaf(0.5)
    output = every_function()[name](x, parameter)
    computed = gradients(output, torch.ones(shape), x, parameter)
    assert output.shape == computed[0].shape == shape and computed[1].shape == () and computed[1].isfinite()
    assert shape == () or computed[1] == 0


@pytest.mark.parametrize("name", every_function())
def test_an_expanded_gradient(name):
    x, parameter, function = leaf(normal(40)), leaf(0.5), every_function()[name]
    output = function(x, parameter)
    computed = torch.autograd.grad(output.sum(), (x, parameter))
    expected = gradients(function(x, parameter), torch.ones(40), x, parameter)
    assert all(torch.equal(gradient, reference) for gradient, reference in zip(computed, expected, strict=True))


def test_only_x_is_kept():
    x = leaf(normal(4, 6, 5, 5))
    for name, function in every_function().items():
        if name == "ste":
            continue
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda saved, kept=kept: kept.append(saved) or saved, lambda saved: saved):
            function(x, leaf(0.5))
        large = [saved for saved in kept if saved.numel() > 1]
        assert len(large) == 1 and large[0].data_ptr() == x.data_ptr(), name


def test_what_is_frozen_costs_nothing(monkeypatch):
    monkeypatch.setattr(gradient_blocks, "inner_product", None)
    monkeypatch.setattr(gradient_blocks, "total", None)
    x, frozen = leaf(normal(50)), torch.tensor(0.5)
    for name, function in every_function().items():
        assert torch.autograd.grad(function(x, frozen).sum(), x)[0].shape == x.shape, name
    monkeypatch.undo()
    monkeypatch.setattr(gradient_blocks, "gate", lambda grad, values, *limits, out=None: limits and values)
    scale = leaf(0.5)
    fake_quantize_learned(x.detach(), scale, quant_min=-4, quant_max=3, gradient_factor=1.0).sum().backward()
    assert scale.grad is not None and not fake_quantize_ste(x.detach(), scale, 0, -4, 3).requires_grad


def test_a_gradient_has_no_gradient():
    x, scale = leaf(normal(5)), leaf(0.5)
    output = fake_quantize_learned(x, scale, quant_min=-4, quant_max=3, gradient_factor=1.0)
    (grad,) = torch.autograd.grad((output**2).sum(), scale, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.backward()


# torch's compiler uses what torch deprecates: instances of autograd.Function, jit.script_method.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", every_function())
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole(name, backend):
    if backend == "inductor":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            pytest.skip(f"needs a C++ compiler: {error}")
    torch._dynamo.reset()
    function = every_function()[name]
    x, grad = leaf(normal(2, 3, 5, 5)), normal(2, 3, 5, 5, seed=1)
    parameter, eager_parameter = leaf(0.5), leaf(0.5)
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    output, expected = compiled(x, parameter), function(x, eager_parameter)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    for gradient, eager_gradient in zip(
        gradients(output, grad, x, parameter), gradients(expected, grad, x, eager_parameter), strict=True
    ):
        torch.testing.assert_close(gradient, eager_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", every_function())
def test_a_gpu_computes_the_same_without_waiting(name):
    x, grad, function = normal(4, 6, 5, 5), normal(4, 6, 5, 5, seed=1), every_function()[name]
    here, there = (leaf(x), leaf(0.5)), (leaf(x.cuda()), leaf(torch.tensor(0.5).cuda()))
    expected, grad_there = gradients(function(*here), grad, *here), grad.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = function(*there)
        computed = gradients(output, grad_there, *there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(output.cpu(), function(*here)) and torch.equal(computed[0].cpu(), expected[0])
    torch.testing.assert_close(computed[1].cpu(), expected[1], rtol=1e-5, atol=1e-5)


def test_autocast_changes_nothing():
    x, grad = normal(400), normal(400, seed=1)
    for name, function in every_function().items():
        here, there = (leaf(x), leaf(0.5)), (leaf(x), leaf(0.5))
        with torch.autocast("cpu", torch.bfloat16):
            output = function(*here)
        expected = function(*there)
        assert output.dtype == torch.float32 and torch.equal(output, expected), name
        for gradient, reference in zip(gradients(output, grad, *here), gradients(expected, grad, *there), strict=True):
            assert torch.equal(gradient, reference), name


def test_one_number_may_have_a_dimension():
    x, grad, number, vector = leaf(normal(50)), normal(50, seed=1), leaf(0.5), leaf([0.5])
    for name in ("lsq", "lsq_plus", "pact"):
        function = every_function()[name]
        of_vector, of_number = (gradients(function(x, parameter), grad, x, parameter) for parameter in (vector, number))
        assert (
            of_vector[1].shape == (1,) and torch.equal(of_vector[1][0], of_number[1]) and torch.equal(of_vector[0], of_number[0])
        )
    zeros = torch.tensor([1], dtype=torch.int32)  # as torch has them
    straight = fake_quantize_ste(x, vector, zeros, -4, 3)
    assert torch.equal(straight, fake_quantize_ste(x, number, 1, -4, 3))
    channels = fake_quantize_ste(x[:, None], vector, zeros, -4, 3, axis=1)
    assert torch.equal(channels[:, 0], straight)


def test_first_values_are_the_papers():
    assert gradient_factor(400, 4) == pytest.approx(1 / 40)
    torch.testing.assert_close(initial_scale(torch.tensor([0.5, 1.0]), 16), torch.tensor([0.25, 0.5]))
    scale = initial_weight_scale(torch.tensor([0.2, -0.2]), torch.tensor([0.1, 0.1]), 3)
    torch.testing.assert_close(scale, torch.tensor([0.125, 0.125]))


def test_unknown_masks_list_the_choices():
    for function in (
        lambda: fake_quantize_ste(torch.ones(2), torch.tensor(1.0), 0, -2, 1, mask="torch"),
        lambda: quantize_clipped(torch.ones(2), torch.tensor(1.0), 2, mask="closed"),
    ):
        with pytest.raises(UserError, match=r"one of paper, rounded"):
            function()
