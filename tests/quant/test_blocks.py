"""Blocks cover every element once, whatever the layout."""

from __future__ import annotations

import pytest
import torch

from qexp.quant.blocks import in_blocks, memory_order

LAYOUTS = {
    "contiguous": lambda: torch.randn(6, 5, 3, 2),
    "channels_last": lambda: torch.randn(6, 5, 3, 2).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(5, 6, 2, 3).transpose(0, 1).transpose(2, 3),
    "strided": lambda: torch.randn(12, 5, 3, 4)[::2, :, :, ::2],
    "expanded": lambda: torch.randn(6, 1, 3, 2).expand(6, 5, 3, 2),
    "half": lambda: torch.randn(6, 5, 3, 2).half(),
}


@pytest.mark.parametrize("block", [1, 7, 10**6, None])
@pytest.mark.parametrize("axis", [None, 0, 1, 3, -1])
@pytest.mark.parametrize("target", ["contiguous", "channels_last", "half"])
@pytest.mark.parametrize("source", LAYOUTS)
def test_every_element_once_with_its_channel(source, target, axis, block):
    torch.manual_seed(0)
    x, out = LAYOUTS[source](), LAYOUTS[target]()
    param = torch.tensor(2.0) if axis is None else torch.arange(1.0, x.shape[axis] + 1)
    shape = [1] * 4
    if axis is not None:
        shape[axis] = -1
    expected = (x.float() * param.reshape(shape) + 0.5).to(out.dtype)
    seen = []

    def kernel(part, part_out, param, number):
        assert part.dtype == torch.float32
        seen.append(part.numel())
        torch.mul(part, param, out=part_out).add_(number)

    before = x.clone()
    in_blocks(kernel, x, out, (param, 0.5), axis, block)
    assert torch.equal(out, expected) and torch.equal(x, before) and sum(seen) == x.numel()


def test_memory_order():
    x = torch.empty(2, 3, 4, 5)
    assert memory_order(x) == (0, 1, 2, 3)
    assert memory_order(x.permute(3, 1, 0, 2)) == (2, 1, 3, 0)
    assert memory_order(x[:, ::2]) is None
    assert memory_order(torch.tensor(1.0)) == ()
