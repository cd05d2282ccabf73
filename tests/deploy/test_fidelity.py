"""Codes are compared by as few images at a time as memory allows, and the numbers are those of whole batches."""

import torch

from qexp.deploy import fidelity
from qexp.deploy.fidelity import images_at_once


def test_fewer_images_at_a_time_where_their_codes_are_large(quantized, graphs, monkeypatch):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), torch.randn(4, 3, 16, 16))
    example = torch.zeros(1, 3, 16, 16)
    sizes = [codes.numel() for codes in case.simulate()[0].values()]
    one = (fidelity._BYTES_PER_CODE * sum(sizes) + fidelity._BYTES_PER_VALUE * max(sizes)) // 4
    assert 100 < images_at_once(case.network, example) == 2**29 // one
    monkeypatch.setattr(fidelity, "_MAX_BYTES", 3 * one)
    assert images_at_once(case.network, example) == 3
    monkeypatch.setattr(fidelity, "_MAX_BYTES", 1)
    assert images_at_once(case.network, example) == 1
