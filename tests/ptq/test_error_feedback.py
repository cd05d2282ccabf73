"""Networks rounded with error feedback: every kind of layer, every grid, and what has no form."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CorrectSettings
from qexp.ptq import error_feedback
from qexp.ptq.adaround_loss import input_rows, kernel_rows
from qexp.ptq.error_feedback import METHODS, error_feedback_
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def network():
    """An ordinary convolution, a depthwise one, one in groups, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def batches(sizes=(16, 8)):
    """Images with neighbours alike, so that errors of a kernel's weights add up."""
    x = torch.randn(sum(sizes), 3, 10, 10, generator=torch.Generator().manual_seed(3))
    x = nn.functional.avg_pool2d(x, 3, 1) * 3 + 0.5
    return [Batch(part, torch.zeros(len(part)), torch.arange(len(part)), len(part)) for part in x.split(list(sizes))]


def specs_of(model, **options):
    options = {"scheme": "symmetric_restricted", "bits": 3, **options}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    return {f"{name}.weight": QuantSpec(**options) for name in layers}


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


def settings_of(method, **options):
    return CorrectSettings(**{method: True, **options})


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_layers_of_all_kinds_come_closer_than_nearest(method, act_order):
    model = seeded(network)
    specs = specs_of(model)
    copied = rounded(model, specs)
    done = error_feedback_(copied, model, specs, batches(), method, settings_of(method, feedback_act_order=act_order))
    assert [row.name for row in done.rows] == list(specs) and not done.notes
    assert all(row.mse <= row.nearest_mse and row.flipped > 0 for row in done.rows)
    assert logit_mse(copied, model) < 0.6 * logit_mse(rounded(model, specs), model)


@torch.no_grad()
def test_the_error_is_that_of_the_outputs():
    """Of the last layer, whose outputs are the logits, with all layers before it as they were left."""
    model = seeded(network)
    specs = specs_of(model)
    images = torch.cat([batch.images for batch in batches()])
    for method, row_of in product(METHODS, ("mse", "nearest_mse")):
        copied = rounded(model, specs)
        last = error_feedback_(copied, model, specs, batches(), method, settings_of(method)).rows[-1]
        if row_of == "nearest_mse":
            copied[-1].weight.copy_(rounded(model, specs)[-1].weight)
        before = nn.Sequential(*list(copied)[:-1])(images)
        wanted = model[-1](before) if method == "gptq" else model(images)
        assert getattr(last, row_of) == pytest.approx(float((copied[-1](before) - wanted).square().mean()), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_depthwise_channels_are_layers_of_their_own_in_their_own_order(method):
    """Each channel of a depthwise convolution, alone in a network, gets the codes that it gets among the others."""
    channels = 6
    model = seeded(lambda: nn.Sequential(nn.Conv2d(channels, channels, 3, groups=channels, bias=False))).eval()
    x = torch.randn(20, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x * (1 + torch.arange(channels)[:, None, None]) * torch.linspace(1, 3, 8)  # each channel of another size
    settings, limits = settings_of(method, feedback_act_order=True), (torch.tensor(-0.3), torch.tensor(0.3))
    spec = {"0.weight": QuantSpec(scheme="symmetric_restricted", bits=3)}

    def chosen(net, images):
        copied = copy.deepcopy(net)
        batch = Batch(images, torch.zeros(len(images)), torch.arange(len(images)), len(images))
        error_feedback_(copied, net, spec, [batch], method, settings, limits={"0.weight": limits})
        return copied[0].weight

    together = chosen(model, x)
    for channel in range(channels):
        alone = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False)).eval()
        alone[0].weight.copy_(model[0].weight[channel : channel + 1])
        assert torch.allclose(chosen(alone, x[:, channel : channel + 1])[0], together[channel], atol=1e-6)
    rows = input_rows(model[0], x)
    orders = rows.square().mean(1).argsort(1, descending=True)
    assert len({tuple(order.tolist()) for order in orders}) > 1  # so that one order for all would not do


GRIDS = [
    ("affine", {"bits": 3, "granularity": "per_channel"}),
    ("linear", {"bits": 3}),
    ("pow2_scale", {"bits": 3, "granularity": "per_group", "group_size": 7}),
    ("symmetric", {"bits": 3, "granularity": "per_in_out_channel"}),
    ("fixed_point", {"bits": 4}),
    ("minifloat", {"bits": 4, "format": "e2m1", "granularity": "per_channel"}),
    ("mxfp4", {"bits": 4, "granularity": "per_block", "block_size": 32}),
    ("nvfp4", {"bits": 4, "granularity": "per_block", "block_size": 16}),
    ("bfp", {"bits": 4, "granularity": "per_block", "block_size": 8}),
    ("log2", {"bits": 4}),
    ("apot", {"bits": 3, "granularity": "per_channel"}),
    ("lut_kmeans", {"bits": 3, "granularity": "per_channel"}),
    ("lut_quantile", {"bits": 3}),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scheme", "options"), GRIDS, ids=[scheme for scheme, _ in GRIDS])
@torch.no_grad()
def test_weights_stay_on_the_grid(scheme, options, method):
    """Where each weight's values are seen by quantizing a hundred others in its place, within the same limits."""
    model = seeded(network)
    del model[-1]  # a linear layer has no input channel and kernel apart
    specs = specs_of(model, scheme=scheme, **options)
    copied = rounded(model, specs)
    settings = settings_of(method, feedback_act_order=True)
    done = error_feedback_(copied, model, specs, batches(), method, settings)
    assert [row.name for row in done.rows] == list(specs) and not done.notes
    for name, spec in specs.items():
        weight, grid = copied.get_parameter(name), error_feedback.ElementGrid.of
        fitted = grid(model.get_submodule(name[:-7]), model.get_parameter(name), spec, None)
        codes, values = fitted.encode(kernel_rows(fitted.layer, weight), fitted.group)
        assert torch.allclose(values, kernel_rows(fitted.layer, weight), rtol=1e-5, atol=1e-7)
        low, high = SCHEMES[scheme].codes_of(spec)
        assert torch.equal(codes, codes.round()) and low <= int(codes.min()) <= int(codes.max()) <= high


@torch.no_grad()
def test_the_grid_of_an_element_is_that_of_quantize_():
    model = seeded(network)
    for scheme, options in GRIDS:
        for layer in (model[0], model[4]):
            spec, wanted = QuantSpec(scheme=scheme, **options), torch.empty_like(layer.weight)
            quantize_(wanted, layer.weight, spec)
            grid = error_feedback.ElementGrid.of(layer, layer.weight, spec, None)
            columns = kernel_rows(layer, layer.weight)
            codes, values = grid.encode(columns, grid.group)
            assert torch.equal(values.reshape(wanted.shape), wanted), scheme
            assert torch.equal(grid.values(codes), wanted) and torch.equal(grid.nearest(), codes), scheme


def test_limits_are_those_of_the_plan():
    model = seeded(network)
    specs, limits = {"0.weight": specs_of(model)["0.weight"]}, (torch.tensor(-0.1), torch.tensor(0.1))
    copied = copy.deepcopy(model)
    error_feedback_(copied, model, specs, batches(), "gptq", limits={"0.weight": limits})
    steps = copied[0].weight / (0.1 / 3)
    assert torch.allclose(steps, steps.round(), atol=1e-4) and int(steps.abs().max().round()) == 3
    assert torch.equal(copied[2].weight, model[2].weight)


@pytest.mark.parametrize("method", METHODS)
def test_how_images_fall_into_batches_decides_nothing(method):
    model = seeded(network)
    specs, copies = specs_of(model), []
    for sizes in ((24,), (5, 12, 7)):
        copies.append(rounded(model, specs))
        error_feedback_(copies[-1], model, specs, batches(sizes), method, settings_of(method))
    assert all(torch.equal(value, copies[1].state_dict()[name]) for name, value in copies[0].state_dict().items())


def test_what_has_no_form_stays_and_is_named(monkeypatch):
    model = seeded(lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), *(nn.Conv2d(4, 4, 1) for _ in range(4)))).eval()
    nn.init.zeros_(model[4].weight)
    specs = {"0.weight": QuantSpec(scheme="affine", bits=4), "1.weight": QuantSpec(scheme="linear_raw", bits=4)}
    specs |= {"2.weight": QuantSpec(scheme="dorefa", bits=4), "3.weight": QuantSpec(scheme="affine", bits=4, mode="float")}
    specs["4.weight"] = QuantSpec(scheme="affine", bits=4)
    copied = copy.deepcopy(model)
    done = error_feedback_(copied, model, specs, batches(), "gptq")
    why = ("ConvTranspose2d", "scheme linear_raw", "dorefa has no grid", "mode float", "it is constant")
    assert not done.rows and [note.layer for note in done.notes] == list(specs)
    assert all(reason in note.reason for reason, note in zip(why, done.notes, strict=True)), done.notes
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in copied.state_dict().items())
    monkeypatch.setattr(error_feedback, "MOMENT_ELEMENTS", 15)
    (note,) = error_feedback_(copied, model, {"4.weight": specs["4.weight"]}, batches(), "gptq").notes
    assert "second moments of its 4 inputs" in note.reason
    with pytest.raises(UserError, match=r"correct.qronos=true: allowed is at least one batch of calibration images"):
        error_feedback_(copied, model, specs, [], "qronos")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1e30, float("nan")], ids=["overflows", "nan"])
def test_a_layer_whose_inputs_overflow_stays_and_is_named(value, method):
    """The layer before it gives finite values, whose squares float32 cannot hold, or none at all."""
    model = seeded(network)
    specs = {"2.weight": specs_of(model)["2.weight"]}
    model[0].bias.data.fill_(value)
    copied = rounded(model, specs)
    before = copied[2].weight.clone()
    done = error_feedback_(copied, model, specs, batches(), method)
    assert not done.rows and torch.equal(copied[2].weight, before)
    assert [(note.layer, "not finite" in note.reason) for note in done.notes] == [("2.weight", True)]


def test_a_linear_layer_of_2048_inputs_fits():
    layer = seeded(lambda: nn.Linear(2048, 10))
    assert error_feedback._why_not(layer, QuantSpec(scheme="affine", bits=4)) == ""
    assert "GiB" in error_feedback._why_not(nn.Linear(25088, 1), QuantSpec(scheme="affine", bits=4))


@pytest.mark.parametrize("method", METHODS)
def test_the_damping_that_was_used_is_told(method):
    """Of a layer with two equal inputs, and of a depthwise one, each of whose channels has one."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 2, 1))).eval()
    model[0].weight.data[:2], model[0].bias.data[:2] = 0.5, 0.25
    twins = [batch._replace(images=batch.images[:, [0, 0, 1]]) for batch in batches()]
    told = {}
    for damping in (0.0, 0.01):
        specs, settings = specs_of(model, bits=8), settings_of(method, feedback_damping=damping)
        done = error_feedback_(rounded(model, specs), model, specs, twins, method, settings)
        told[damping] = [row.damping for row in done.rows]
    if method == "gpfq":
        assert told == {0.0: [None, None], 0.01: [None, None]}
    else:
        assert told[0.01] == [0.01, 0.01]
        assert told[0.0][0] == 0 and 1e-6 <= told[0.0][1] < 0.01
