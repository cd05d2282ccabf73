"""Bias correction and the re-estimation of batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import Batch, QuantSpec
from qexp.nn.channels import scale_and_shift
from qexp.nn.connectivity import ChannelClip
from qexp.nn.fold import ChannelStatistics, fold_batch_norm
from qexp.nn.layer_pairs import LayerPair
from qexp.ptq.bias_correction import correct_bias_, correct_bias_analytic_, mean_input
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.ptq.range_methods import BehindNorm
from qexp.quant.schemes import quantize_


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def batches(*sizes, shape=(3, 8, 8), seed=3):
    generator = torch.Generator().manual_seed(seed)
    image_batches = (torch.randn(size, *shape, generator=generator) for size in sizes)
    return [Batch(images, torch.zeros(len(images)), torch.arange(len(images)), len(images)) for images in image_batches]


def network():
    """Every kind of layer that has a bias, and one that has none."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


@torch.no_grad()
def quantized(model, bits=3):
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            quantize_(module.weight.data, module.weight.data, QuantSpec(scheme="symmetric_restricted", bits=bits))
    return copied


def output_means(model, data):
    """Mean of every layer's output channel over all images."""
    outputs, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            hooks.append(module.register_forward_hook(lambda layer, args, y, name=name: outputs.update({name: y.double()})))
    with torch.no_grad():
        model(torch.cat([batch.images for batch in data]))
    for hook in hooks:
        hook.remove()
    return {name: y.transpose(0, 1).flatten(1).mean(1) if y.dim() == 4 else y.mean(0) for name, y in outputs.items()}


@pytest.mark.parametrize("sizes", [(24,), (10, 10, 4)])
def test_empirical_correction_leaves_no_shift_on_its_images(sizes):
    model, data = seeded(network), batches(*sizes)
    copied = quantized(model).train()
    wanted = output_means(model, data)
    assert max(float((mean - wanted[name]).abs().max()) for name, mean in output_means(copied.eval(), data).items()) > 0.02
    copied.train()
    correction = correct_bias_(copied, model, data)
    assert list(correction.shifts) == ["0", "2", "4", "8"] and not correction.notes
    assert all(module.training for module in copied.modules())
    for name, mean in output_means(copied.eval(), data).items():
        assert torch.allclose(mean, wanted[name], atol=1e-6), name


def test_one_batch_and_several_give_the_same_biases():
    model = seeded(network)
    copies = [quantized(model), quantized(model)]
    for copied, sizes in zip(copies, [(24,), (10, 10, 4)], strict=True):
        whole = batches(24)[0]
        parts = torch.split(whole.images, list(sizes))
        correct_bias_(copied, model, [Batch(images, whole.labels, whole.positions, len(images)) for images in parts])
    for name, value in copies[0].state_dict().items():
        assert torch.allclose(value, copies[1].state_dict()[name], atol=1e-6)


def test_a_layer_called_twice_is_left_alone():
    layer = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Conv2d(3, 2, 1)).eval()
    correction = correct_bias_(quantized(model), model, batches(4))
    assert list(correction.shifts) == ["3"] and "called 2 times" in correction.notes[0]
    with pytest.raises(UserError, match="calibration images"):
        correct_bias_(quantized(model), model, [])


@torch.no_grad()
def test_analytic_correction_takes_most_of_the_shift():
    # A 1 x 1 convolution of Gaussian images is Gaussian, and its batch norm knows exactly how it is distributed.
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()))
    nn.init.normal_(model[1].bias, generator=torch.Generator().manual_seed(0))
    nn.init.uniform_(model[1].weight, -2, 2, generator=torch.Generator().manual_seed(1))
    data = batches(512)
    reestimate_batch_norm_(model, data)
    folded = fold_batch_norm(model.eval())
    copied = copy.deepcopy(folded.model)  # only the second layer is quantized, the first gives what batch norm promises
    quantize_(copied[3].weight.data, copied[3].weight.data, QuantSpec(scheme="symmetric_restricted", bits=3))
    wanted = output_means(folded.model, data)["3"]
    before = (output_means(copied, data)["3"] - wanted).abs()
    correction = correct_bias_analytic_(copied, folded.model, folded.statistics)
    after = (output_means(copied, data)["3"] - wanted).abs()
    assert before.mean() > 0.05 and after.mean() < 0.03 * before.mean()
    assert list(correction.shifts) == ["3"] and correction.notes == (
        "0: bias not corrected, its input is not the output of one layer or batch norm",
    )
    # The same from a batch norm that stands in the network.
    standing = copy.deepcopy(model)
    standing[3].load_state_dict(folded.model[3].state_dict())
    quantize_(standing[3].weight.data, standing[3].weight.data, QuantSpec(scheme="symmetric_restricted", bits=3))
    assert torch.allclose(correct_bias_analytic_(standing, model).shifts["3"], correction.shifts["3"])


@torch.no_grad()
def test_a_norm_without_scale_and_shift_is_one_of_ones_and_zeros():
    twin, bare = (seeded(with_norm).eval() for _ in range(2))
    bare[1] = nn.BatchNorm2d(4, affine=False).eval()
    specs = [BehindNorm(beta, gamma) for gamma, beta in map(scale_and_shift, (twin[1], bare[1]))]
    assert all(torch.equal(getattr(specs[0], end), getattr(specs[1], end)) for end in ("beta", "gamma"))
    shifts = []
    for model in (twin, bare):
        copied = copy.deepcopy(model)
        quantize_(copied[4].weight.data, copied[4].weight.data, QuantSpec(scheme="symmetric_restricted", bits=3))
        shifts.append(correct_bias_analytic_(copied, model).shifts["4"])
    assert shifts[0].any() and torch.equal(*shifts)
    shiftless = nn.BatchNorm2d(4)
    shiftless.bias = None
    assert [value.tolist() for value in scale_and_shift(shiftless)] == [[1.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "clip", "prelu"])
@torch.no_grad()
def test_mean_behind_an_activation(activation):
    mean, std = torch.tensor([0.5, -1.0, 7.0, 2.0]).double(), torch.tensor([1.0, 2.0, 0.5, 0.0]).double()
    cap, slope = torch.tensor([0.7, 6.0, 5.0, 1.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    prelu = nn.PReLU(4)
    prelu.weight.copy_(slope)
    modules = {"none": nn.Identity(), "relu": nn.ReLU(), "relu6": nn.ReLU6(), "clip": ChannelClip(cap), "prelu": prelu}
    pair = LayerPair("a", "b", activation, "0", 1, True, False)
    # The quantiles of the normal distribution at the middles of equal shares.
    z = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).reshape(-1, 1)
    net = nn.Sequential(modules[activation]).double()
    mean_rectified = mean_input(pair, net, ChannelStatistics(mean, std))
    assert torch.allclose(mean_rectified, net(mean + std * z).mean(0), atol=1e-4)


def with_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


@torch.no_grad()
def test_reestimation_is_the_cumulative_mean_and_changes_nothing_else():
    model, data = seeded(with_norm), batches(6, 6, 4)
    model.eval()
    model[1].momentum = 0.3
    before = copy.deepcopy(model.state_dict())
    done = reestimate_batch_norm_(model, data)
    assert (
        (done.num_norms, done.num_images, done.notes) == (2, 16, ())
        and not any(module.training for module in model.modules())
        and model[1].momentum == 0.3
    )
    x = [model[0](batch.images) for batch in data]
    mean = sum(part.mean((0, 2, 3)) for part in x) / 3
    var = sum(part.var((0, 2, 3), unbiased=True) for part in x) / 3
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6) and torch.allclose(model[1].running_var, var, atol=1e-6)
    # Downstream, batch norm saw what the first one made with each batch's own statistics, without dropout.
    normed = [
        (part - part.mean((0, 2, 3), keepdim=True)) / (part.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        for part in x
    ]
    second = sum(model[4](part.relu()).mean((0, 2, 3)) for part in normed) / 3
    assert torch.allclose(model[5].running_mean, second, atol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith(("running_mean", "running_var")), name


@torch.no_grad()
def test_reestimation_without_images_or_norms_changes_nothing():
    model = seeded(with_norm).eval()
    model[1].running_mean.fill_(2.0)
    with pytest.raises(UserError, match="calibration images"):
        reestimate_batch_norm_(model, [])
    assert (model[1].running_mean == 2).all() and model[1].momentum == 0.1
    assert reestimate_batch_norm_(fold_batch_norm(model).model, batches(2)).num_norms == 0


@torch.no_grad()
def test_reestimation_names_the_norms_that_it_left():
    model = seeded(with_norm).eval()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()
    model[2].unused = nn.BatchNorm2d(4)
    done = reestimate_batch_norm_(model, batches(4))
    assert done.num_norms == 1 and {note.layer: note.reason for note in done.notes} == {
        "1": "it keeps no running statistics", "2.unused": "the network does not execute it"
    }  # fmt: skip
