"""The two-tensor blocks: every element once, with its channel and its gradient, and sums of all of them."""

from __future__ import annotations

import pytest
import torch

from qexp.quant import gradient_blocks
from qexp.quant.gradient_blocks import backward_in_blocks, gate, inner_product
from qexp.quant.gradients import fake_quantize_learned
from qexp.quant.gradients_dorefa import quantize_dorefa_weight
from qexp.quant.gradients_pact import quantize_clipped

LAYOUTS = {
    "contiguous": lambda: torch.randn(6, 5, 3, 2),
    "channels_last": lambda: torch.randn(6, 5, 3, 2).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(5, 6, 2, 3).transpose(0, 1).transpose(2, 3),
    "strided": lambda: torch.randn(12, 5, 3, 4)[::2, :, :, ::2],
    "expanded": lambda: torch.randn(6, 1, 3, 2).expand(6, 5, 3, 2),
    "half": lambda: torch.randn(6, 5, 3, 2).half(),
}


@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize("axis", [None, 0, 1, 3, -1])
@pytest.mark.parametrize("layout_of_grad", ["contiguous", "channels_last", "expanded", "half"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_once(layout, layout_of_grad, axis, block, monkeypatch):
    monkeypatch.setattr(gradient_blocks, "BLOCK", block)
    torch.manual_seed(0)
    x, grad = LAYOUTS[layout](), LAYOUTS[layout_of_grad]()
    column = torch.tensor(2.0) if axis is None else torch.arange(1.0, x.shape[axis] + 1)
    seen = []

    def kernel(x, grad, column, number, *, axis, out, buffers):
        assert x.dtype == grad.dtype == torch.float32 and (out is None or out.shape == x.shape == buffers[0].shape)
        seen.append(x.numel())
        return torch.add(x * column, grad, alpha=number, out=out), (inner_product(grad, x.clone(), axis),)

    before = x.clone(), grad.clone()
    grad_x, (total,) = backward_in_blocks(kernel, x, grad, (column, 0.5), axis, wants_x=True)
    shape = [1] * 4
    if axis is not None:
        shape[axis] = -1
    expected = x.float() * column.reshape(shape) + 0.5 * grad.float()
    assert sum(seen) == x.numel() and len(seen) > 1 or block == 10**6
    assert torch.equal(grad_x, expected.to(x.dtype)) and grad_x.stride() == torch.empty_like(x).stride()
    assert torch.equal(x, before[0]) and torch.equal(grad, before[1])
    product = x.float() * grad.float()
    wanted = product.sum() if axis is None else product.sum([dim for dim in range(4) if dim != axis % 4])
    torch.testing.assert_close(total, wanted)
    assert backward_in_blocks(kernel, x, grad, (column, 0.5), axis, wants_x=False)[0] is None


@pytest.mark.parametrize("out", [False, True])
def test_gate_is_open_at_both_ends(out):
    values = torch.tensor([-2.0, -1.0, -0.999, 0.0, 1.999, 2.0, 3.0])
    for low, high in ((-1.0, 2.0), (torch.tensor(-1.0), torch.tensor(2.0)), (-1.0, torch.full((7,), 2.0))):
        passed = gate(torch.arange(1.0, 8.0), values, low, high, out=torch.empty(7) if out else None)
        assert passed.tolist() == [0, 0, 3, 4, 5, 0, 0]
    assert gate(values, values, -1.0, 2.0, out=values) is values and values[0] == 0


@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (64, 18)])
@pytest.mark.parametrize("name", ["lsq", "lsq_plus", "pact", "dorefa"])
def test_how_much_goes_through_at_once_changes_no_bit(name, shape, monkeypatch):
    """Partial sums are of `BLOCK` elements whatever goes through the steps at once, so that a training stays what it was."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    monkeypatch.setattr(gradient_blocks, "BLOCK", 100)
    results = []
    for at_once in (1, 2, 4, 100):
        monkeypatch.setattr(gradient_blocks, "AT_ONCE", at_once)
        value, scale, offset = (
            x.clone().requires_grad_(),
            torch.tensor(0.4, requires_grad=True),
            torch.tensor(-0.3, requires_grad=True),
        )
        if name == "dorefa":
            output, wanted = quantize_dorefa_weight(value, 4), (value,)
        elif name == "pact":
            output, wanted = quantize_clipped(value, scale, 4, signed=True), (value, scale)
        else:
            more = {"offset": offset} if name == "lsq_plus" else {}
            output = fake_quantize_learned(value, scale, quant_min=-8, quant_max=7, gradient_factor=0.1, **more)
            wanted = (value, scale, *more.values())
        results.append((output.detach(), *torch.autograd.grad(output, wanted, grad)))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_a_sum_is_of_the_partial_sums_of_blocks(monkeypatch):
    """LSQ's gradient of the scale, added up by hand in the order that stored trainings have."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x, grad = (torch.randn(150_000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    scale = torch.tensor(0.4, requires_grad=True)
    fake_quantize_learned(x, scale, quant_min=-8, quant_max=7, gradient_factor=1.0).backward(grad)
    steps = x * scale.detach().reciprocal()
    inside = (steps > -8) & (steps < 7)
    slopes = steps.round().clamp(-8, 7) - torch.where(inside, steps, 0.0)
    parts = [torch.dot(*pair) for pair in zip(grad.split(1 << 16), slopes.split(1 << 16), strict=True)]
    assert len(parts) == 3 and torch.equal(scale.grad, torch.stack(parts).sum(0))
