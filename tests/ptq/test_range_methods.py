"""The range methods against closed forms, torch, and slow versions of themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.calibrate import RANGE_METHODS, CalibrateSettings
from qexp.ptq.range_methods import BehindNorm, bn, ema_minmax, find_in_sample, weight_range
from qexp.ptq.samples import Rows
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_

# bits -> best clip in sigmas and its SQNR in dB, and the SQNR with max|x| of a million samples
GAUSSIAN = {
    3: (1.95, 13.28, 6.78),
    4: (2.45, 18.89, 14.15),
    5: (2.90, 24.31, 20.76),
    6: (3.30, 29.69, 27.07),
    7: (3.60, 35.07, 33.23),
    8: (3.95, 40.51, 39.32),
}
WEIGHT_METHOD_NAMES = RANGE_METHODS.names_where(lambda row: row.for_weights)
RESTRICTED = {bits: QuantSpec(scheme="symmetric_restricted", bits=bits) for bits in (*range(2, 13), 16)}


@pytest.fixture(scope="module")
def million() -> Tensor:
    return torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))


def using(method: str, **values) -> CalibrateSettings:
    return CalibrateSettings(name=method, weights=method, **values)


def clip_of(limits: tuple[Tensor, Tensor]) -> float:
    return max(float(limits[0].abs()), float(limits[1].abs()))


def sqnr_db(x: Tensor, spec: QuantSpec, limits: tuple[Tensor, Tensor]) -> float:
    error = quantize_(torch.empty_like(x), x, spec, limits) - x
    return 10 * math.log10(x.double().square().sum() / error.double().square().sum())


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_mse_finds_the_best_clip_of_a_gaussian(million, bits):
    """One step of the search is 1/100 of max|x|, 0.048 sigma; from the values and from their histogram."""
    clip, best, absmax = GAUSSIAN[bits]
    spec, step = RESTRICTED[bits], float(million.abs().max()) / 100
    limits = weight_range(million, spec, using("mse"))
    counted = find_in_sample(RANGE_METHODS["mse"], Rows.of(million[None]).histogram(2048), spec, using("mse"))
    for clip_range in (limits, counted):
        assert clip_of(clip_range) == pytest.approx(clip, abs=step)
        assert sqnr_db(million, spec, clip_range) == pytest.approx(best, abs=0.1)
    assert sqnr_db(million, spec, weight_range(million, spec, using("minmax"))) == pytest.approx(absmax, abs=0.1)


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_aciq_is_as_good_as_the_search(million, bits):
    spec = RESTRICTED[bits]
    limits = weight_range(million, spec, using("aciq", distribution="gaussian"))
    assert sqnr_db(million, spec, limits) == pytest.approx(GAUSSIAN[bits][1], abs=0.1)


@pytest.mark.parametrize(("bits", "laplace", "gaussian"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55), (8, 9.90, 3.92)])
def test_aciq_ratios_are_the_papers(bits, laplace, gaussian):
    from qexp.ptq.aciq import aciq_ratio

    assert aciq_ratio("laplace", 2 / 2**bits) == pytest.approx(laplace, abs=0.015)
    assert aciq_ratio("gaussian", 2 / 2**bits) == pytest.approx(gaussian, abs=0.015)


def test_aciq_behind_a_relu_reads_the_positive_values(million):
    """All steps on one side, zeros left out: the clip of the signed grid with one bit more."""
    relu, affine = million.relu()[None], QuantSpec(scheme="affine", bits=4)
    method, asked = RANGE_METHODS["aciq"], using("aciq", distribution="gaussian")
    low, high = find_in_sample(method, Rows.of(relu), affine, asked)
    assert low == 0 and float(high) == pytest.approx(2.91, abs=0.03)
    unsigned = QuantSpec(scheme="unsigned_symmetric", bits=4)
    assert torch.equal(find_in_sample(method, Rows.of(relu), unsigned, asked)[1], high)
    mirrored = find_in_sample(method, Rows.of(-relu), affine, asked)
    assert torch.equal(mirrored[0], -high) and mirrored[1] == 0


def test_aciq_of_two_sides_is_around_the_mean(million):
    spec = QuantSpec(scheme="affine", bits=4)
    low, high = weight_range(million + 1, spec, using("aciq", distribution="gaussian"))
    assert float(low + high) / 2 == pytest.approx(1, abs=0.01) and float(high - low) / 2 == pytest.approx(2.5, abs=0.05)


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=300), percent=st.floats(60, 100))
def test_percentile_is_torchs_quantile(values, percent):
    x, share = torch.tensor(values), percent / 100
    exact = x.double()
    low, high = weight_range(x, QuantSpec(scheme="affine", bits=8), using("percentile", percentile=percent))
    expected = torch.quantile(exact, 1 - share), torch.quantile(exact, share)
    if float(expected[0]) or float(expected[1]):
        assert float(low) == pytest.approx(float(expected[0]), rel=1e-5, abs=1e-30)
        assert float(high) == pytest.approx(float(expected[1]), rel=1e-5, abs=1e-30)
    else:
        assert (low, high) == (x.min(), x.max())
    end = torch.quantile(exact.abs(), share)
    limits = weight_range(x, RESTRICTED[8], using("percentile", percentile=percent))
    assert not float(end) or clip_of(limits) == pytest.approx(float(end), rel=1e-5)


def naive_kl(counts: list[float], levels: int, tried: list[int]) -> int:
    """The threshold by loops over bins, as the definition reads; of equals the widest."""
    results = []
    for number in tried:
        head = counts[:number]
        p = [*head[:-1], head[-1] + sum(counts[number:])]
        runs = [bin_ * levels // number for bin_ in range(number)]
        q = []
        for bin_, count in enumerate(head):
            members = [head[other] for other in range(number) if runs[other] == runs[bin_] and head[other] > 0]
            q.append(sum(members) / len(members) if count > 0 else 0.0)
        total_p, total_q, divergence = sum(p), sum(q), 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                divergence += a / total_p * math.log(a / total_p / (b / total_q)) if b > 0 else math.inf
        results.append((divergence, -number))
    return -min(results)[1]


@pytest.mark.parametrize("seed", range(3))
def test_kl_is_the_definition(seed):
    from qexp.ptq.kl import best_threshold

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3000, generator=generator).abs() ** (1 + seed / 2)
    counts = torch.histc(x, 128, 0, float(x.max())).double()
    for levels in (4, 8, 16):
        tried = torch.linspace(128, max(levels, 8), 20).round().long().unique().tolist()
        assert best_threshold(counts[None], levels, 20).tolist() == [naive_kl(counts.tolist(), levels, tried)]


def test_kl_clips_outliers_and_treats_channels_apart(million):
    x = torch.stack([million[:100_000], million[:100_000]])
    x[0, 0] = 40
    spec = QuantSpec(scheme="symmetric_restricted", bits=6, granularity="per_channel")
    low, high = weight_range(x, spec, using("kl"))
    assert float(high[0]) < 10
    alone = weight_range(x[1], RESTRICTED[6], using("kl"))
    assert torch.equal(high[1], alone[1]) and torch.equal(low[1], alone[0])


def test_kl_of_many_groups_is_taken_in_parts(million, monkeypatch):
    x, spec = million[:6000].reshape(60, 100), QuantSpec(scheme="affine", bits=4, granularity="per_group", group_size=10)
    whole = weight_range(x, spec, using("kl", num_bins=128))
    monkeypatch.setattr("qexp.ptq.kl._GROUPS", 77)
    assert all(torch.equal(*pair) for pair in zip(whole, weight_range(x, spec, using("kl", num_bins=128)), strict=True))


@pytest.mark.parametrize("scheme", ["symmetric_restricted", "affine", "unsigned_symmetric"])
@pytest.mark.parametrize("method", ["mse", "kl"])
def test_uniform_values_at_high_bits_keep_their_range(method, scheme):
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2 - 0.5
    spec = QuantSpec(scheme=scheme, bits=12)
    assert weight_range(x, spec, using(method)) == (x.min(), x.max())


@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4, 4.0])
def test_mse_takes_the_least_error_of_its_candidates(norm):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(1)) ** 3
    spec = RESTRICTED[4]

    def error(ratio: float) -> float:
        copy = quantize_(torch.empty_like(x), x, spec, (x.min() * ratio, x.max() * ratio))
        return float((copy - x).double().abs().pow(norm).sum())

    low, high = weight_range(x, spec, using("mse", norm=norm, num_candidates=20))
    best = min(range(1, 21), key=lambda number: (error(number / 20), -number))
    assert float(high / x.max()) == pytest.approx(best / 20) and float(low / x.min()) == pytest.approx(best / 20)
    if norm == 2.0:
        wider = weight_range(x, spec, using("mse", norm=4.0, num_candidates=20))
        assert wider[1] >= high


def test_mse_moves_the_two_ends_of_an_affine_grid_apart():
    x = torch.cat([torch.rand(5000, generator=torch.Generator().manual_seed(0)), torch.tensor([-4.0])])
    low, high = weight_range(x, QuantSpec(scheme="affine", bits=3), using("mse"))
    assert float(high) > 0.8 and float(low) > -2


@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.clipped))
@pytest.mark.parametrize("method", WEIGHT_METHOD_NAMES)
@settings(max_examples=8)
@given(data=st.data())
def test_limits_lie_within_the_values_and_quantize_takes_them(method, scheme, data):
    granularity = data.draw(st.sampled_from(["per_tensor", "per_channel", "per_group"]))
    values = data.draw(st.lists(st.floats(-10, 10, width=16), min_size=30, max_size=30))
    x = torch.tensor([*values[:-2], -1.0, 1.0]).reshape(3, 10)
    if granularity != "per_tensor":
        x[:, 0] = 1.0  # something positive in every channel
    spec = QuantSpec(scheme=scheme, bits=4, granularity=granularity, group_size=4)
    asked = using(method, num_candidates=10, num_bins=128)
    if not RANGE_METHODS[method].takes(SCHEMES[spec.scheme]):
        with pytest.raises(UserError, match=f"calibrate={method}: allowed is minmax"):
            weight_range(x, spec, asked)
        return
    low, high = weight_range(x, spec, asked)
    num = {"per_tensor": 1, "per_channel": 3, "per_group": 9}[granularity]
    assert low.shape == high.shape == (() if num == 1 else (num,)) and (low <= high).all()
    assert low.min() >= min(0, x.min()) and high.max() <= max(0, x.max())
    assert torch.isfinite(quantize_(torch.empty_like(x), x, spec, (low, high))).all()


@pytest.mark.parametrize("method", WEIGHT_METHOD_NAMES)
def test_constant_channels_keep_their_value(method):
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    x[0], x[2] = 0.0, -0.25
    spec = QuantSpec(scheme="affine", bits=4, granularity="per_channel")
    low, high = weight_range(x, spec, using(method))
    assert low[[0, 2]].tolist() == high[[0, 2]].tolist() == [0.0, -0.25] and low[1] < high[1]
    assert weight_range(torch.zeros(5), RESTRICTED[4], using(method)) == (0, 0)


def test_values_sparser_than_the_percentile_keep_their_range():
    x = torch.zeros(1000)
    x[:3] = torch.tensor([0.5, -1.0, 2.0])
    for spec, low in ((RESTRICTED[4], -1), (QuantSpec(scheme="affine", bits=4), -1)):
        assert weight_range(x, spec, using("percentile", percentile=99.0)) == (low, 2)


@pytest.mark.parametrize("method", WEIGHT_METHOD_NAMES)
def test_empty_and_not_finite(method):
    for x, words in (
        (torch.empty(0), "at least one element"),
        *((torch.tensor([0.0, bad]), "NaN") for bad in (math.nan, math.inf)),
    ):
        with pytest.raises(UserError, match=words):
            weight_range(x, RESTRICTED[8], using(method))


def test_what_has_no_such_range():
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="lut_kmeans has no clipping range"):
        weight_range(x, QuantSpec(scheme="lut_kmeans", bits=4), using("minmax"))
    with pytest.raises(UserError, match="calibrate(.weights)?=kl: allowed is minmax.* for quant=log2"):
        weight_range(x, QuantSpec(scheme="log2", bits=4), using("kl"))
    with pytest.raises(UserError, match="Its copy holds codes"):
        weight_range(x, QuantSpec(scheme="linear_raw", bits=4), using("mse"))


def test_the_control_gets_the_range_of_the_rounded_copy(million):
    x = million[:5000]
    control = QuantSpec(scheme="symmetric_restricted", bits=4, mode="float")
    assert weight_range(x, control, using("mse")) == weight_range(x, RESTRICTED[4], using("mse"))


@given(
    ends=st.lists(st.tuples(st.floats(-10, 0, width=32), st.floats(0, 10, width=32)), min_size=1, max_size=20),
    momentum=st.floats(0, 1),
)
def test_ema_is_its_recursion(ends, momentum):
    low, high = ends[0]
    for one, other in ends[1:]:
        low, high = momentum * low + (1 - momentum) * one, momentum * high + (1 - momentum) * other
    table = torch.tensor(ends)
    averages = ema_minmax((table[:, :1], table[:, 1:]), RESTRICTED[8], CalibrateSettings(momentum=momentum))
    assert [float(end) for end in averages] == pytest.approx([low, high], rel=1e-6, abs=1e-30)


def test_bn_range_by_hand():
    beta, gamma = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, -0.25, 0.0])
    channel, tensor = (QuantSpec(scheme="affine", bits=8, granularity=name, axis=1) for name in ("per_channel", "per_tensor"))
    low, high = bn(BehindNorm(beta, gamma, floor=0.0), channel, CalibrateSettings())
    assert low.tolist() == [0.0, 0.0, 0.5] and high.tolist() == [4.0, 0.0, 0.5]
    low, high = bn(BehindNorm(beta, gamma), channel, CalibrateSettings())
    assert low.tolist() == [-2.0, -3.5, 0.5] and high.tolist() == [4.0, -0.5, 0.5]
    assert bn(BehindNorm(beta, gamma), tensor, CalibrateSettings(num_sigmas=3.0)) == (-2.75, 2.5)
    assert bn(BehindNorm(beta * 9, gamma, floor=0.0, ceiling=6.0), tensor, CalibrateSettings()) == (0.0, 6.0)


def test_bn_range_holds_what_a_batch_norm_gives():
    norm = torch.nn.BatchNorm2d(4).train()
    generator = torch.Generator().manual_seed(0)
    norm.weight.data, norm.bias.data = torch.randn(4, generator=generator), torch.randn(4, generator=generator)
    out = norm(torch.randn(16, 4, 9, 9, generator=generator) * 3 + 1).relu().transpose(0, 1).flatten(1)
    spec = QuantSpec(scheme="affine", bits=8, granularity="per_channel")
    low, high = bn(BehindNorm(norm.bias, norm.weight, floor=0.0), spec, CalibrateSettings())
    assert (out.amin(1) >= low - 1e-6).all() and (out.amax(1) <= high).all() and not high.requires_grad
