"""The two-tensor blocks: every element once, with its channel and its gradient, and sums of all of them."""

from __future__ import annotations

import pytest
import torch

from qexp.quant import gradient_blocks
from qexp.quant.gradient_blocks import backward_in_blocks, gate, inner_product

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
