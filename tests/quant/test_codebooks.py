"""Fitted quantizers against other people's: sklearn's k-means, numpy's quantiles, and the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import cluster

from qexp.base.types import QuantSpec
from qexp.quant.codebooks import fit_codebook
from qexp.quant.encoding import decode, encode
from qexp.quant.schemes import quantize_


def quantized(x: torch.Tensor, **spec) -> torch.Tensor:
    return quantize_(torch.empty_like(x), x, QuantSpec(**spec))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_quantiles_are_numpys():
    x = normal(3, 1001) * 0.02
    scale, codebook = fit_codebook(x, 3, kmeans=False)
    expected = np.quantile(x.double().numpy(), (np.arange(8) + 0.5) / 8, axis=1).T
    assert codebook.dtype == torch.float16
    np.testing.assert_allclose((codebook.double() * scale[:, None]).numpy(), expected, atol=scale.max() * 2**-11)


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_kmeans_is_no_worse_than_sklearns(bits):
    x = normal(3000)
    clusters = cluster.KMeans(2**bits, n_init=1, random_state=0).fit(x.numpy()[:, None])
    error = (quantized(x, scheme="lut_kmeans", bits=bits) - x).square().sum().item()
    assert error <= clusters.inertia_ * 1.03
    assert error <= (quantized(x, scheme="lut_quantile", bits=bits) - x).square().sum().item()


def test_kmeans_is_a_fixed_point_of_lloyds_iteration():
    x = normal(1, 5000)
    scale, codebook = fit_codebook(x, 3, kmeans=True)
    centroids = codebook.float() * scale[:, None]
    nearest = (x[0, :, None] - centroids[0]).abs().argmin(1)
    means = torch.stack([x[0, nearest == index].mean() for index in range(8)])
    assert torch.allclose(means, centroids[0], atol=float(scale) * 2**-10)


def test_max_of_a_gaussian():
    """The levels that Max (1960) tabulated for N(0, 1), 2 bits: +-0.4528 and +-1.510; distortion 0.1175, 9.30 dB."""
    x = normal(400_000)
    copy = quantized(x, scheme="lut_kmeans", bits=2)
    assert copy.unique().tolist() == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=0.02)
    assert (copy - x).square().mean().item() == pytest.approx(0.1175, rel=0.01)


def test_fewer_values_than_centroids_are_exact_up_to_fp16():
    x = torch.tensor([-1.0, -1.0, 0.25, 0.5, 1.0])
    assert torch.equal(quantized(x, scheme="lut_kmeans", bits=4), x)


@pytest.mark.parametrize("scheme", ["lut_quantile", "lut_kmeans"])
def test_pinned_zero(scheme):
    x = normal(4, 500) + 0.03
    spec = {"scheme": scheme, "bits": 3, "granularity": "per_channel"}
    free, pinned = (encode(x, QuantSpec(**spec, pin_zero=pin)).params["codebook"] for pin in (False, True))
    assert ((free == 0).sum(1) == 0).all() and ((pinned == 0).sum(1) == 1).all()
    assert ((free != pinned).sum(1) == 1).all() and (pinned.float().diff(dim=1) > 0).all()


@pytest.mark.parametrize("power", [-60, 60])
@pytest.mark.parametrize("scheme", ["lut_quantile", "lut_kmeans", "binary", "ternary"])
def test_tiny_and_huge_tensors(scheme, power):
    """A codebook in plain fp16 would be zero or infinite."""
    x, bits = normal(300), {"binary": 1, "ternary": 2}.get(scheme, 3)
    assert torch.equal(quantized(x * 2.0**power, scheme=scheme, bits=bits), quantized(x, scheme=scheme, bits=bits) * 2.0**power)


def test_each_row_is_fitted_alone_and_order_does_not_matter():
    x = normal(5, 400)
    _, together = fit_codebook(x, 3, kmeans=True)
    for row, codebook in zip(x, together, strict=True):
        shuffled = row[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
        assert torch.equal(fit_codebook(shuffled[None], 3, kmeans=True)[1][0], codebook)


def test_binary():
    x = torch.tensor([[1.0, -3.0, 0.0], [-0.5, -0.5, 2.0]])
    assert quantized(x, scheme="binary", bits=1).unique().tolist() == pytest.approx([-7 / 6, 7 / 6])
    rows = quantized(x, scheme="binary", bits=1, granularity="per_channel")
    assert rows.tolist() == [[pytest.approx(s * 4 / 3) for s in (1, -1, 1)], [-1, -1, 1]]


def test_ternary():
    """mean|x| = 1.5, threshold 1.05, scale the mean of 1.5 and 3."""
    x = torch.tensor([1.5, -3.0, 0.5, 1.0])
    assert quantized(x, scheme="ternary", bits=2).tolist() == [2.25, -2.25, 0, 0]


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_dorefa_is_the_papers_formula(bits):
    x, levels = normal(500), 2**bits - 1
    tanh = torch.tanh(x)
    expected = 2 * (torch.round(levels * (tanh / (2 * tanh.abs().max()) + 0.5)) / levels) - 1
    copy = quantized(x, scheme="dorefa", bits=bits)
    assert torch.allclose(copy, expected, atol=1e-6) and copy.abs().max() == 1
    control = quantized(x, scheme="dorefa", bits=bits, mode="float")
    assert torch.allclose(control, tanh / tanh.abs().max(), atol=1e-6)
    assert (control - copy).abs().max() <= 1.0001 / levels


def test_dorefa_at_one_bit_is_binary():
    x = normal(6, 50)
    for granularity in ("per_tensor", "per_channel"):
        dorefa = quantized(x, scheme="dorefa", bits=1, granularity=granularity)
        assert torch.equal(dorefa, quantized(x, scheme="binary", bits=1, granularity=granularity))


def test_decoding_needs_codes_and_stored_parameters_only():
    x = normal(4, 100)
    encoded = encode(x, QuantSpec(scheme="lut_kmeans", bits=3, granularity="per_channel"))
    scale, codebook = encoded.params["scale"], encoded.params["codebook"]
    by_hand = torch.stack([codebook[row].float()[encoded.codes[row].long()] * scale[row] for row in range(4)])
    assert torch.equal(by_hand, decode(encoded))
