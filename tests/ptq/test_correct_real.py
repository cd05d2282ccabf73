"""What the corrections give back on a trained network: the published ResNet-20 on 2000 of CIFAR-10's test images."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CorrectSettings
from qexp.models.cifar_resnet import CifarResNet
from qexp.models.weights import load_weights
from qexp.nn.fold import fold_batch_norm
from qexp.ptq.adaround import adaround_
from qexp.ptq.bias_correction import correct_bias_
from qexp.ptq.equalization import equalize
from qexp.quant.schemes import quantize_

pytestmark = pytest.mark.slow


def read(folder, count):
    """The first images of a seeded permutation of the files in order of class and name, and their classes."""
    files = sorted(folder.glob("*/*.jpg"))
    classes = sorted({path.parent.name for path in files})
    chosen = [files[index] for index in torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:count]]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in chosen]))
    labels = torch.tensor([classes.index(path.parent.name) for path in chosen])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous(), labels


@pytest.fixture(scope="module")
def trained(extra_data):
    """The folded network, what scores a network, and 256 images for calibration."""
    if not ((extra_data / "cifar10-jpeg").is_dir() and (extra_data / "resnet20-12fca82f.th").is_file()):
        pytest.skip(f"{extra_data} lacks cifar10-jpeg/ or resnet20-12fca82f.th")
    model = CifarResNet(20)
    load_weights(model, extra_data / "resnet20-12fca82f.th")
    images, labels = read(extra_data / "cifar10-jpeg" / "test", 2000)
    calib, _ = read(extra_data / "cifar10-jpeg" / "train", 256)

    @torch.no_grad()
    def prec1(network):
        predictions = torch.cat([network(part).argmax(1) for part in images.split(500)])
        return 100 * float((predictions == labels).float().mean())

    return fold_batch_norm(model.eval()), prec1, [Batch(calib, torch.zeros(256), torch.arange(256), 256)]


def at_4_bits(model, granularity):
    specs = {
        f"{name}.weight": QuantSpec(scheme="symmetric_restricted", bits=4, granularity=granularity)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    copied = copy.deepcopy(model)
    for name, spec in specs.items():
        quantize_(copied.get_parameter(name).data, model.get_parameter(name).data, spec)
    return copied, specs


def test_bias_correction_lifts_per_tensor_weights_by_points(trained):
    folded, prec1, batches = trained
    copied, _ = at_4_bits(folded.model, "per_tensor")
    before = prec1(copied)
    correct_bias_(copied, folded.model, batches)
    assert prec1(folded.model) == pytest.approx(80.6, abs=0.2)
    assert prec1(copied) > before + 3


def test_equalization_undoes_rescaled_channels(trained):
    folded, prec1, _ = trained
    bad, generator = copy.deepcopy(folded.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in (*bad.layer1, *bad.layer2, *bad.layer3):
            factor = 10 ** (4 * torch.rand(block.conv1.out_channels, generator=generator) - 2)
            block.conv1.weight.mul_(factor.reshape(-1, 1, 1, 1))
            block.conv1.bias.mul_(factor)
            block.conv2.weight.div_(factor.reshape(1, -1, 1, 1))
    assert prec1(bad) == pytest.approx(prec1(folded.model), abs=0.1)
    assert prec1(at_4_bits(bad, "per_tensor")[0]) < 20
    assert prec1(at_4_bits(equalize(bad).model, "per_tensor")[0]) > 65


def test_adaround_at_4_bits_per_channel_is_within_a_point(trained):
    folded, prec1, batches = trained
    copied, specs = at_4_bits(folded.model, "per_channel")
    before = prec1(copied)
    adarounded = adaround_(copied, folded.model, specs, batches, CorrectSettings(adaround_iterations=500))
    assert len(adarounded.rows) == 20 and all(row.mse <= row.nearest_mse for row in adarounded.rows)
    assert prec1(copied) > max(prec1(folded.model) - 1.0, before)
