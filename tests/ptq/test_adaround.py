"""AdaRound: never worse than nearest on its images, on every grid it has a form for, and deterministic."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CorrectSettings
from qexp.ptq import adaround_loss
from qexp.ptq.adaround import adaround_
from qexp.ptq.adaround_loss import Quadratic, Samples, input_rows, kernel_rows, output_rows
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_

QUICK = CorrectSettings(adaround=True, adaround_iterations=150)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def batches():
    """Images with neighbours alike, so that errors of a kernel's weights add up."""
    x = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(3))
    x = nn.functional.avg_pool2d(x, 3, 1) * 3 + 0.5
    return [Batch(part, torch.zeros(len(part)), torch.arange(len(part)), len(part)) for part in x.split(16)]


def specs_of(model, **options):
    options = {"scheme": "symmetric_restricted", "bits": 3, **options}
    return {
        f"{name}.weight": QuantSpec(**options)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@torch.no_grad()
def rounded(model, specs, **options):
    copied = copy.deepcopy(model)
    for name, spec in specs.items():
        quantize_(copied.get_parameter(name).data, model.get_parameter(name).data, replace(spec, **options))
    return copied


def logit_mse(copied, model):
    images = torch.cat([batch.images for batch in batches()])
    with torch.no_grad():
        return float((copied(images) - model(images)).square().mean())


@pytest.mark.parametrize("relu", [False, True])
def test_better_than_nearest_which_is_better_than_floor_and_ceil(relu):
    model = seeded(network)
    specs = specs_of(model)
    copied = rounded(model, specs)
    errors = {name: logit_mse(rounded(model, specs, rounding=name), model) for name in ("half_even", "floor", "ceil")}
    adarounded = adaround_(copied, model, specs, batches(), CorrectSettings(adaround_iterations=300, adaround_relu=relu))
    assert [row.name for row in adarounded.rows] == list(specs) and not adarounded.notes
    assert all(row.mse <= row.nearest_mse for row in adarounded.rows)
    assert adarounded.rows[-1].mse == pytest.approx(logit_mse(copied, model), rel=1e-3)  # on inputs quantized so far, as they are
    assert adarounded.rows[0].mse < 0.7 * adarounded.rows[0].nearest_mse and adarounded.rows[0].flipped > 0
    assert logit_mse(copied, model) < 0.7 * errors["half_even"] < 0.35 * min(errors["floor"], errors["ceil"])


@pytest.mark.parametrize("scheme", SCHEMES.names_where(lambda row: row.even_steps and row.dequantizes))
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_weights_stay_on_the_grid_next_to_where_they_were(scheme, granularity):
    model = seeded(network)
    specs = specs_of(model, scheme=scheme, bits=max(3, SCHEMES[scheme].min_bits), granularity=granularity, group_size=8)
    copied = rounded(model, specs)
    adarounded = adaround_(copied, model, specs, batches(), CorrectSettings(adaround_iterations=20))
    assert len(adarounded.rows) == 3
    for row in adarounded.rows:
        value = copied.get_parameter(row.name)
        ways = [rounded(model, specs, rounding=rounding).get_parameter(row.name) for rounding in ("floor", "ceil", "half_even")]
        assert torch.isclose(torch.stack(ways), value, rtol=1e-6, atol=1e-7).any(0).all()
    assert any(row.flipped > 0 for row in adarounded.rows)


def test_what_was_not_learned_is_nearest():
    model = seeded(network)
    specs = specs_of(model, scheme="affine", granularity="per_channel")
    nearest, copied = rounded(model, specs), rounded(model, specs, rounding="floor")
    adarounded = adaround_(copied, model, specs, batches(), CorrectSettings(adaround_iterations=1, adaround_lr=1e-9))
    assert all(row.flipped == 0 and row.mse == row.nearest_mse for row in adarounded.rows)
    assert all(torch.equal(value, nearest.state_dict()[name]) for name, value in copied.state_dict().items())


def test_limits_are_those_of_the_plan():
    model = seeded(network)
    specs = {"0.weight": specs_of(model)["0.weight"]}
    limits = (torch.tensor(-0.1), torch.tensor(0.1))
    copied = copy.deepcopy(model)
    adaround_(copied, model, specs, batches(), QUICK, limits={"0.weight": limits})
    steps = copied[0].weight / (0.1 / 3)
    assert torch.allclose(steps, steps.round(), atol=1e-4) and int(steps.abs().max().round()) == 3
    assert torch.equal(copied[2].weight, model[2].weight)


def test_the_same_seed_gives_the_same_codes():
    model = seeded(network)
    settings = CorrectSettings(adaround_iterations=30, adaround_relu=True, adaround_batch_size=16)
    copies = []
    for seed in (0, 0, 1):
        copies.append(rounded(model, specs_of(model)))
        adaround_(copies[-1], model, specs_of(model), batches(), settings, seed=seed)
    states = [torch.cat([value.flatten() for value in copied.state_dict().values()]) for copied in copies]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_what_it_has_no_form_for_stays_and_is_named():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    nn.init.zeros_(model[2].weight)
    specs = {"0.weight": QuantSpec(scheme="affine", bits=4), "1.weight": QuantSpec(scheme="log2", bits=4)}
    specs["2.weight"] = QuantSpec(scheme="affine", bits=4)
    copied = copy.deepcopy(model)
    adarounded = adaround_(copied, model, specs, batches(), QUICK)
    assert not adarounded.rows and [note.split(":")[0] for note in adarounded.notes] == list(specs)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in copied.state_dict().items())
    with pytest.raises(UserError, match="calibration images"):
        adaround_(copied, model, specs, [], QUICK)


LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding="same", padding_mode="circular"), (3, 4, 7, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3, groups=2, bias=False), (3, 4, 9)),
    "linear": (nn.Linear(4, 6), (3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_rows_are_the_layer(name):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    product = input_rows(layer, x) @ kernel_rows(layer, layer.weight).transpose(1, 2)
    if layer.bias is not None:
        product = product + layer.bias.reshape(product.shape[0], 1, -1)
    assert torch.allclose(product, output_rows(layer, layer(x)), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_both_losses_are_the_output_error_and_have_its_gradient(name, monkeypatch):
    layer, shape = LAYERS[name]
    monkeypatch.setattr(adaround_loss, "_CHUNK_ELEMENTS", 400)  # several parts
    generator = torch.Generator().manual_seed(0)
    x, wanted = (torch.randn(shape, generator=generator) for _ in range(2))
    y = layer(wanted)  # of other inputs: the float network's
    change = 0.1 * torch.randn(kernel_rows(layer, layer.weight).shape, generator=generator)
    losses = [Quadratic(layer, layer.weight), Samples(layer, layer.weight, relu=False, num_images=3, generator=generator)]
    for loss in losses:
        loss.add(x, y)
        loss.close()
    losses[1].batch_size = 20_000
    moved = copy.deepcopy(layer)
    kernel_rows(moved, moved.weight).add_(change)
    expected = output_rows(layer, moved(x) - y).square().mean(1).double()
    for loss in losses:
        assert torch.allclose(loss.error(change), expected, rtol=1e-4)
    assert torch.allclose(losses[0].gradient(change), losses[1].gradient(change), atol=0.15)
    step = 1e-3 * losses[0].gradient(change)
    slope = (losses[0].error(change + step) - losses[0].error(change - step)).sum() / 2
    assert torch.allclose(slope, 1e-3 * losses[0].gradient(change).double().square().sum(), rtol=1e-2)
