import copy
import math

import pytest
import torch
from torch import nn

from qexp.base.types import QuantSpec
from qexp.qat import folded_weight
from qexp.qat.folded_weight import FoldedWeight
from qexp.qat.moments import Moments, weight_moments
from qexp.qat.quantizers import ClippedRange, DorefaWeight, LearnedStep, ObservedRange, WeightRange
from qexp.quant.affine import fake_quantize_affine
from qexp.quant.qparams import MIN_SCALE


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spec(scheme, bits=4, axis=None):
    return QuantSpec(scheme=scheme, bits=bits, granularity="per_tensor" if axis is None else "per_channel", axis=axis or 0)


def seen(low, high, mean_abs=0.7):
    return Moments(minimum=torch.tensor(low), maximum=torch.tensor(high), mean_abs=torch.tensor(mean_abs))


def of_activation(name, bits=4):
    """An initialised quantizer of an activation."""
    signed = spec("symmetric_restricted", bits)
    quantizer = {
        "observed": lambda: ObservedRange(spec("affine", bits), "rounded", 0.9),
        "observed, symmetric": lambda: ObservedRange(spec("symmetric", bits), "rounded", 0.9),
        "lsq": lambda: LearnedStep(spec("unsigned_symmetric", bits), "paper", 30),
        "lsq, signed": lambda: LearnedStep(signed, "paper", 30),
        "lsq_plus": lambda: LearnedStep(spec("affine", bits), "paper", 30, with_offset=True),
        "pact": lambda: ClippedRange(spec("unsigned_symmetric", bits), "paper", learned=True),
        "pact, signed": lambda: ClippedRange(signed, "paper", learned=True),
        "dorefa": lambda: ClippedRange(spec("unsigned_symmetric", bits), "paper", learned=False, end=1.0),
    }[name]()
    quantizer.initialise(seen(-0.41, 2.13))
    return quantizer


ACTIVATIONS = ("observed", "observed, symmetric", "lsq", "lsq, signed", "lsq_plus", "pact", "pact, signed", "dorefa")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_grid_gives_what_forward_gave_in_eval_mode(name, bits):
    quantizer, x = of_activation(name, bits).eval(), values(3, 5, 4, 4) * 2
    expected = fake_quantize_affine(x, quantizer.qparams)
    assert torch.equal(quantizer(x), expected) and 2 < expected.unique().numel() <= 2**bits


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("name", ["ste", "ste, affine", "lsq", "lsq_plus"])
def test_the_grid_of_a_weight_gives_what_forward_gave(name, axis):
    x = values(6, 4, 3, 3)
    if name.startswith("ste"):
        quantizer = WeightRange(spec("affine" if "affine" in name else "symmetric_restricted", axis=axis), "rounded")
        qparams = quantizer.at(x)
    else:
        channels = None if axis is None else x.shape[axis]
        quantizer = LearnedStep(spec("symmetric", axis=axis), "paper", 9, channels)
        quantizer.initialise(weight_moments(x, axis, three_sigma=name == "lsq_plus"))
        qparams = quantizer.qparams
    assert qparams.axis == axis and qparams.scale.shape == (() if axis is None else (x.shape[axis],))
    assert torch.equal(quantizer(x), fake_quantize_affine(x, qparams))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dorefas_levels_are_odd_multiples_of_half_their_distance(bits):
    quantizer, x = DorefaWeight(spec("dorefa", bits), "paper"), values(8, 3, 3, 3)
    qparams, weight = quantizer.at(x), quantizer(x)
    codes = weight / qparams.scale
    torch.testing.assert_close(codes, codes.round(), atol=1e-5, rtol=0)
    assert codes.round().abs().max() == qparams.quant_max == -qparams.quant_min == 2**bits - 1
    assert bool((codes.round() % 2).abs().eq(1).all())
    torch.testing.assert_close(qparams.scale * qparams.quant_max, x.abs().mean() if bits == 1 else torch.tensor(1.0))


@pytest.mark.parametrize(("bits", "scheme", "p"), [(4, "symmetric", 7), (2, "symmetric", 1), (3, "unsigned_symmetric", 7)])
def test_lsqs_first_scale_and_the_factor_of_its_gradient(bits, scheme, p):
    """2 E|x| / sqrt(p), and sum(dL/dx^ {R(v) - v; lowest code; p}) / sqrt(N p); arXiv:1902.08153, sections 2.1 and 2.2."""
    x, low = values(10, 7), 0 if scheme == "unsigned_symmetric" else -p - 1
    quantizer = LearnedStep(spec(scheme, bits), "paper", x.numel())
    quantizer.initialise(weight_moments(x, None, three_sigma=False))
    torch.testing.assert_close(quantizer.scale.detach(), 2 * x.abs().mean() / math.sqrt(p))
    grad = values(10, 7, seed=1)
    quantizer(x).backward(grad)
    v = x / quantizer.scale.detach()
    slope = torch.where(v <= low, low, torch.where(v >= p, p, v.round() - v))
    torch.testing.assert_close(quantizer.scale.grad, (grad * slope).sum() / math.sqrt(x.numel() * p))


def test_per_channel_each_step_has_the_factor_of_its_own_weights():
    x = values(6, 4, 3, 3)
    quantizer = LearnedStep(spec("symmetric", axis=0), "paper", 36, 6)
    quantizer.initialise(weight_moments(x, 0, three_sigma=False))
    torch.testing.assert_close(quantizer.scale.detach(), 2 * x.abs().mean((1, 2, 3)) / math.sqrt(7))
    quantizer(x).sum().backward()
    for channel in range(6):
        alone = LearnedStep(spec("symmetric"), "paper", 36)
        alone.initialise(weight_moments(x[channel], None, three_sigma=False))
        alone(x[channel]).sum().backward()
        torch.testing.assert_close(quantizer.scale.grad[channel], alone.scale.grad)


def test_lsq_plus_begins_at_three_sigma_and_at_the_range():
    x = values(6, 4, 3, 3) + 0.2
    quantizer = LearnedStep(spec("symmetric", 3), "paper", 9)
    quantizer.initialise(weight_moments(x, None, three_sigma=True))
    mean, std = x.mean(), x.std(unbiased=False)
    torch.testing.assert_close(quantizer.scale.detach(), (mean + 3 * std) / 4)
    activation = of_activation("lsq_plus", 3)
    torch.testing.assert_close(activation.scale.detach(), torch.tensor(2.54 / 7))
    assert float(activation.factor) == pytest.approx(1 / math.sqrt(30 * 7))  # counted from its lower end, p is 7
    # The value of the lowest code is a whole number of steps from zero.
    lowest = activation(torch.tensor(-9.0)) / activation.scale
    torch.testing.assert_close(lowest, lowest.round())


@pytest.mark.parametrize("name", ["lsq", "lsq_plus", "pact"])
def test_a_step_that_crosses_zero_does_not_turn_the_grid_around(name):
    quantizer, x = of_activation(name), values(50)
    expected = quantizer(x).detach()
    with torch.no_grad():
        (quantizer.alpha if name == "pact" else quantizer.scale).neg_()
    assert torch.equal(quantizer(x), expected) and torch.equal(fake_quantize_affine(x, quantizer.qparams), expected)
    quantizer(x).sum().backward()
    parameter = next(quantizer.parameters())
    turned = of_activation(name)
    turned(x).sum().backward()
    assert torch.equal(parameter.grad, -next(turned.parameters()).grad)


@pytest.mark.parametrize("name", ["lsq", "pact"])
def test_where_calibration_saw_only_zeros_the_step_can_still_learn(name):
    quantizer, x = of_activation(name), values(50).abs() * 40
    quantizer.initialise(seen(0.0, 0.0, 0.0))
    quantizer(x).sum().backward()
    parameter = next(quantizer.parameters())
    assert parameter.detach() == 1 and parameter.grad > 0


def test_pacts_alpha_is_the_end_of_the_range_and_learns_from_what_it_clips():
    quantizer, x = of_activation("pact"), torch.tensor([-1.0, 0.5, 3.0, 4.0])
    assert isinstance(quantizer.alpha, nn.Parameter) and quantizer.alpha.item() == pytest.approx(2.13)
    quantizer(x).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert float(quantizer.alpha.grad) == 1100
    assert of_activation("pact, signed").alpha.item() == pytest.approx(2.13)
    fixed = of_activation("dorefa")
    assert not list(fixed.parameters()) and float(fixed.alpha) == 1 and float(fixed(torch.tensor(5.0))) == 1


def test_observed_ranges_move_in_train_mode_only():
    quantizer, x = of_activation("observed"), torch.tensor([-3.0, 0.2, 1.0])
    quantizer.eval()(x)
    assert (float(quantizer.minimum), float(quantizer.maximum)) == pytest.approx((-0.41, 2.13))
    quantizer.train()(x)
    assert (float(quantizer.minimum), float(quantizer.maximum)) == pytest.approx((0.9 * -0.41 - 0.3, 0.9 * 2.13 + 0.1))
    # The range has moved before it is used.
    assert torch.equal(quantizer.eval()(x), fake_quantize_affine(x, quantizer.qparams))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.train()(torch.tensor([math.inf, -math.inf, math.nan]))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_observed_ranges_do_not_hang_on_the_memory_format():
    x = values(4, 6, 5, 5)
    quantizer, other = of_activation("observed"), of_activation("observed")
    result = other(x.to(memory_format=torch.channels_last))
    assert torch.equal(quantizer(x), result) and torch.equal(quantizer.minimum, other.minimum)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nothing_works_before_it_has_values_and_all_values_are_in_the_state(name):
    ready = of_activation(name)
    blank = copy.deepcopy(ready)
    for tensor in (*blank.parameters(), *blank.buffers()):
        tensor.data.fill_(math.nan)
    blank.load_state_dict(ready.state_dict())
    x = values(20)
    assert torch.equal(blank.eval()(x), ready.eval()(x))
    if name != "dorefa":
        fresh = LearnedStep(spec("affine"), "paper", 3, with_offset=True)
        assert bool(torch.stack([fresh.scale, fresh.offset]).isnan().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_half_precision_comes_back_as_it_came(name, dtype):
    quantizer, x = of_activation(name).eval(), (values(40)).to(dtype).requires_grad_()
    output = quantizer(x)
    output.sum().backward()
    assert output.dtype == x.grad.dtype == dtype
    assert torch.equal(output, quantizer(x.detach().float()).to(dtype))
    assert all(parameter.grad.dtype == torch.float32 for parameter in quantizer.parameters())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Linear(5, 6),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
    ],
    ids=["conv", "linear", "transposed", "transposed, grouped"],
)
def test_a_folded_weight_with_frozen_batch_norm_is_the_folded_layer(layer):
    norm = (nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d)(6).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.5, 1.0, 0.7, 0.0]))
        norm.bias.copy_(values(6))
        norm.running_mean.copy_(values(6, seed=2))
        norm.running_var.copy_(values(6, seed=3).abs() + 0.1)
    quantizer = LearnedStep(spec("symmetric"), "paper", layer.weight.numel())
    folded = FoldedWeight(quantizer, layer, norm)
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    x = values(3, 5) if isinstance(layer, nn.Linear) else values(3, 4, 5, 5)
    shape = (1, 6) if isinstance(layer, nn.Linear) else (1, 6, 1, 1)

    # What the layer gives with W f is what it gives with W, times f.
    plain, mine = copy.deepcopy(layer), copy.deepcopy(layer)
    for twin in (plain, mine):
        twin.bias.data.zero_()
    mine.weight.data.copy_(folded.folded(layer.weight))
    torch.testing.assert_close(mine(x), plain(x) * gain.view(shape))

    quantizer.initialise(weight_moments(folded.folded(layer.weight), None, three_sigma=False))
    integer = copy.deepcopy(layer)
    integer.weight.data.copy_(quantizer(folded.folded(layer.weight)))
    integer.bias.data.copy_(norm.bias + (layer.bias - norm.running_mean) * gain)
    trained = copy.deepcopy(layer)
    trained.weight.data.copy_(folded(layer.weight))
    torch.testing.assert_close(norm(trained(x)), integer(x), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_folded_weight_reaches_gamma_and_is_finite_where_gamma_is_zero():
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    norm.weight.data.copy_(torch.tensor([1.0, 0.5, 0.0, 2.0]))
    quantizer = LearnedStep(spec("symmetric"), "paper", layer.weight.numel())
    folded, grad = FoldedWeight(quantizer, layer, norm), values(4, 3, 3, 3)
    quantizer.initialise(weight_moments(folded.folded(layer.weight), None, three_sigma=False))
    output = folded(layer.weight)
    output.backward(grad)
    assert torch.equal(output[2], layer.weight[2]) and torch.equal(layer.weight.grad[2], grad[2])
    assert bool(norm.weight.grad.isfinite().all()) and float(norm.weight.grad[2]) == 0
    # d(Q(W f) / f)/df = (W mask - Q(W f) / f) / f, f = gamma / sqrt(var + eps)
    gain = (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).detach().view(4, 1, 1, 1)
    v = layer.weight.detach() * gain / quantizer.scale.detach()
    inside = (v > quantizer.quant_min) & (v < quantizer.quant_max)
    slope = (layer.weight.detach() * inside - output.detach()) / gain
    expected = (grad * slope).sum((1, 2, 3)) * torch.rsqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(norm.weight.grad[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-4, atol=1e-5)


def test_a_folded_weight_without_zeros_is_as_with_them(monkeypatch):
    """Where no factor is zero nothing is chosen between: the same bits and gradients, of weight, step and gamma."""
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    norm.weight.data.copy_(torch.tensor([1.0, 0.5, -0.3, 2.0]))
    quantizer = LearnedStep(spec("symmetric"), "paper", layer.weight.numel())
    folded, grad = FoldedWeight(quantizer, layer, norm), values(4, 3, 3, 3)
    quantizer.initialise(weight_moments(folded.folded(layer.weight), None, three_sigma=False))
    learned = layer.weight, quantizer.scale, norm.weight
    results = []
    for eager in (True, False):
        monkeypatch.setattr(folded_weight, "eager_cpu", lambda x, eager=eager: eager)
        output = folded(layer.weight)
        results.append((output.detach(), *torch.autograd.grad(output, learned, grad)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("bits", [5, 8])
def test_above_four_bits_lsq_begins_no_further_than_the_largest_value(bits):
    x = values(64, 64)
    quantizer = LearnedStep(spec("symmetric", bits), "paper", x.numel())
    quantizer.initialise(weight_moments(x, None, three_sigma=False))
    torch.testing.assert_close(quantizer.scale.detach(), x.abs().max() / (2 ** (bits - 1) - 1))
    few = torch.cat([torch.zeros(4000), torch.tensor([1.0])])  # one value far from the others
    quantizer.initialise(weight_moments(few, None, three_sigma=False))
    assert quantizer.scale.item() == pytest.approx(2 * few.abs().mean().item() / (2 ** (bits - 1) - 1) ** 0.5)


@pytest.mark.parametrize("scale", [0.3, -0.3, 0.0, 1e-30, [0.3, 0.2], [0.3, -0.2], [0.3, 1e-30]])
def test_a_step_as_it_is_learns_as_by_the_rule(scale):
    """A positive step is used as it is: the same bits and gradient as max(|s|, smallest), of which it is the ordinary case."""
    channels = len(scale) if isinstance(scale, list) else None
    quantizer = LearnedStep(spec("symmetric", axis=None if channels is None else 0), "paper", 9, channels)
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor(scale))
    expected = quantizer.scale.abs().clamp_min(MIN_SCALE)
    assert torch.equal(quantizer.step, expected)
    grad = torch.full_like(expected, -0.7)
    computed, wanted = (torch.autograd.grad(step, quantizer.scale, grad)[0] for step in (quantizer.step * 1, expected))
    assert torch.equal(computed, wanted)
