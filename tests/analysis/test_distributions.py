"""Statistics are those of all values at once, fits find the distribution that was drawn, and suggestions gain what they say."""

import math

import pytest
import torch

from qexp.analysis.distributions import fit_distributions, profile, suggest
from qexp.base.types import QuantSpec
from qexp.nn.fake_quant import observed
from qexp.nn.fake_quantize import range_qparams
from qexp.nn.graph import trace
from qexp.quant.affine import fake_quantize_affine


def draw(name, n=20_000):
    generator = torch.Generator().manual_seed(0)
    if name in ("gaussian", "half_normal"):
        x = 2 * torch.randn(n, generator=generator)
    elif name in ("laplace", "half_laplace"):
        u = torch.rand(n, generator=generator) - 0.5
        x = -3 * u.sign() * torch.log1p(-2 * u.abs())
    else:
        x = 4 * torch.rand(n, generator=generator) - 1
    return x.abs() if name.startswith("half") else x


SCALES = {"gaussian": 2.0, "half_normal": 2.0, "laplace": 3.0, "half_laplace": 3.0, "uniform": 4.0}


@pytest.mark.parametrize("name", SCALES)
def test_the_drawn_distribution_is_found(name):
    fits = fit_distributions(draw(name))
    assert fits[0].name == name and fits[0].ks < 0.015
    assert fits[0].scale == pytest.approx(SCALES[name], rel=0.03)
    assert [fit.ks for fit in fits] == sorted(fit.ks for fit in fits) and len(fits) == 3


def test_zeros_of_a_relu_are_left_out():
    x = draw("gaussian").relu()
    assert fit_distributions(x)[0] == fit_distributions(x[x > 0])[0]
    assert fit_distributions(torch.zeros(9)) == () == fit_distributions(torch.full((9,), 2.0))


@torch.no_grad()
def test_statistics_of_a_stream_are_those_of_all_values(graphs):
    net = graphs.Residual().eval()
    traced = trace(net, graphs.images(1))
    batches = [graphs.images(n, seed=n) * n for n in (1, 5, 3)]
    statistics = profile(observed(traced), batches)
    assert list(statistics) == ["input", "relu", "bn2", "relu_1", "mean"]
    parts = [graphs.values_at(traced, batch) for batch in batches]
    for name, stats in statistics.items():
        x = torch.cat([part[name][0] for part in parts]).double()
        assert stats.n == x.numel() and stats.sample.numel() <= x.numel()
        assert (stats.minimum, stats.maximum) == (float(x.min()), float(x.max()))
        assert stats.zero_share == pytest.approx(float((x == 0).double().mean()))
        assert bool(torch.isin(stats.sample.double(), x.flatten()).all())


def test_no_images_is_an_error(graphs):
    with pytest.raises(ValueError, match="no images"):
        profile(observed(trace(graphs.Residual().eval(), graphs.images(1))), [])


def stats_of(sample):
    from qexp.analysis.distributions import _Stream

    stream = _Stream()
    for part in sample.split(4000):
        stream.add(part)
    return stream.stats()


def error(x, ratio, spec):
    qparams = range_qparams(ratio * x.min(), ratio * x.max(), spec)
    return float((fake_quantize_affine(x, qparams) - x).double().square().mean())


@pytest.mark.parametrize(
    ("name", "bits", "method"),
    [("uniform", 4, "minmax"), ("laplace", 4, "aciq"), ("gaussian", 3, "aciq"), ("gaussian", 8, "minmax")],
)
def test_suggestions(name, bits, method):
    x, spec = draw(name), QuantSpec(scheme="affine", bits=bits)
    suggestion = suggest(stats_of(x), fit_distributions(x), spec)
    assert suggestion.method == method, suggestion
    gain = max(10 * math.log10(error(x, 1.0, spec) / error(x, number / 20, spec)) for number in range(1, 20))
    assert (gain >= 0.5) == (method != "minmax")


def test_values_of_no_distribution_take_mse():
    x = torch.cat([draw("uniform"), torch.full((3,), 60.0)])
    suggestion = suggest(stats_of(x), fit_distributions(x), QuantSpec(scheme="affine", bits=4))
    assert suggestion.method == "mse" and "no distribution fits" in suggestion.reason
    assert suggest(stats_of(torch.zeros(5)), (), QuantSpec(scheme="affine", bits=4)).method == "minmax"
