"""Streamed sets: the same pixels as decoded ones, whatever the workers; ImageNet's transforms; faults that name the file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qexp.base.files import hash_file
from qexp.config.data import DataSettings
from qexp.data import file_hashes, streaming
from qexp.data.augment import epoch_key, resized_crop_box
from qexp.data.load import load_data


def settings(root, **values):
    return DataSettings(**{"name": "imagefolder", "root": str(root), "storage": "stream", "workers": 0, **values})


def imagenet(root, **values):
    return settings(root, **{"name": "imagenet", "image_size": 14, "augment": "resized_crop_flip", **values})


def train(data, **values):
    return list(data.train_batches(**{"epoch": 3, "batch_size": 5, "seed": 1, "device": "cpu", **values}))


@pytest.fixture
def photos(tmp_path, write):
    """An ImageNet-like tree of images of different sizes."""
    root = tmp_path / "photos"
    for part, count in (("train", 4), ("val", 2)):
        for name in ("n01", "n02"):
            for number in range(count):
                write(root / part / name / f"{number}.jpg", seed=number, size=(20 + 3 * number, 30 - 2 * number))
    return root


@pytest.mark.parametrize("randaugment", [None, 20])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("image_size", [None, 6])
def test_streamed_equals_decoded(tree, augment, image_size, randaugment):
    shared = {"augment": augment, "image_size": image_size, "num_calib": 2, "mean": [0.4], "std": [0.3]}
    streamed, decoded = (load_data(settings(tree, storage=storage, **shared)) for storage in ("stream", "ram"))
    assert streamed.streamed and not decoded.streamed and streamed.image_shape == decoded.image_shape
    for data in (streamed, decoded):
        assert data.split_sizes == {"train": 10, "calib": 2, "select": 0, "test": 4}
    pairs = [*zip(train(streamed, randaugment=randaugment), train(decoded, randaugment=randaugment), strict=True)]
    for split in ("calib", "test"):
        batches = [list(data.eval_batches(split, batch_size=3, device="cpu")) for data in (streamed, decoded)]
        pairs += zip(*batches, strict=True)
    for ours, theirs in pairs:
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True)) and ours.num_global == theirs.num_global
    assert streamed.fingerprint != decoded.fingerprint


def test_workers_ranks_and_resume_change_no_pixel(photos):
    alone = train(load_data(imagenet(photos)))
    assert [len(batch.images) for batch in alone] == [5, 3] and alone[0].images.shape == (5, 3, 14, 14)
    before = torch.get_rng_state()
    for ours, theirs in zip(train(load_data(imagenet(photos, workers=2))), alone, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.positions, theirs.positions)
    assert torch.equal(torch.get_rng_state(), before)
    data = load_data(imagenet(photos))
    for world_size in (2, 4):  # four ranks share the last three images
        ranks = [train(data, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step, batch in enumerate(alone):
            assert torch.equal(torch.cat([rank[step].images for rank in ranks]), batch.images)
            assert torch.equal(torch.cat([rank[step].labels for rank in ranks]), batch.labels)
    assert torch.equal(train(data, start_step=1)[0].images, alone[1].images)
    assert not torch.equal(train(data, epoch=4)[0].images, alone[0].images)


def test_imagenet_evaluation_is_resize_and_center_crop(photos):
    from qexp.base.torchvision_compat import torchvision

    transforms = torchvision().transforms.v2
    reference = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.PILToTensor()])
    data = load_data(imagenet(photos, mean=[0.0], std=[1.0]))
    batch = next(data.eval_batches("test", batch_size=4, device="cpu"))
    files = [photos / "val" / name / f"{number}.jpg" for name in ("n01", "n02") for number in (0, 1)]
    for image, file in zip(batch.images, files, strict=True):
        assert torch.equal((image * 255).round().to(torch.uint8), reference(Image.open(file)))


def test_imagenet_training_cuts_the_drawn_box(photos):
    data = load_data(imagenet(photos, mean=[0.0], std=[1.0]))
    batch = train(data)[0]
    files = streaming.scan_tree(imagenet(photos)).parts["train"].paths
    rows = data._splits.rows["train"][batch.positions]
    key = epoch_key(1, 3)
    for image, row, index in zip((batch.images * 255).round().to(torch.uint8), rows, batch.positions, strict=True):
        picture = Image.open(files[row])
        top, left, height, width = resized_crop_box(key, index[None], picture.height, picture.width)[0].tolist()
        cut = picture.crop((left, top, left + width, top + height)).resize((14, 14), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
        assert torch.equal(image, expected) or torch.equal(image, expected.flip(-1))


def test_auto_streams_what_is_large(tree, photos, monkeypatch):
    assert not load_data(settings(tree, storage="auto")).streamed
    monkeypatch.setattr(streaming, "_RAM_LIMIT_BYTES", 16 * 3 * 8 * 8 - 1)
    assert load_data(settings(tree, storage="auto")).streamed
    assert not load_data(settings(tree, storage="auto", image_size=7)).streamed
    assert load_data(imagenet(photos, storage="auto")).streamed


def test_fingerprint_of_files(tree):
    before = load_data(settings(tree)).fingerprint
    moved = tree.with_name("elsewhere")
    shutil.move(tree, moved)
    assert load_data(settings(moved)).fingerprint == before
    others = [load_data(settings(moved, **values)).fingerprint for values in ({"image_size": 8}, {"num_calib": 1})]
    (moved / "train" / "cat" / "0.png").rename(moved / "train" / "cat" / "00.png")
    others.append(load_data(settings(moved)).fingerprint)
    assert len({before, *others}) == 4


def test_fingerprint_of_content(tree, write):
    """An image replaced by another of equal size, with the times of the first."""
    file = tree / "test" / "cat" / "0.png"
    before, times, content = load_data(settings(tree)).fingerprint, file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_data(settings(tree)).fingerprint != before
    file.write_bytes(content)
    assert load_data(settings(tree)).fingerprint == before


def test_files_are_read_once(tree, monkeypatch):
    read = []

    def counted(path, length):
        read.append(path.name)
        return hash_file(path, length)

    monkeypatch.setattr(file_hashes, "hash_file", counted)
    expected = load_data(settings(tree)).fingerprint
    assert (len(read), load_data(settings(tree)).fingerprint) == (16, expected)
    monkeypatch.setattr(file_hashes, "_FRESH_S", -1.0)
    assert load_data(settings(tree)).fingerprint == expected
    read.clear()
    assert load_data(settings(tree)).fingerprint == expected and read == []
    (tree / "train" / "cat" / "0.png").touch()
    assert load_data(settings(tree)).fingerprint == expected and read == ["0.png"]
    (cache,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.txt")
    cache.write_bytes(cache.read_bytes()[:-5])  # a process that was killed
    read.clear()
    assert load_data(settings(tree)).fingerprint == expected and len(read) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "train" / "cat" / "0.png"))  # no folder
    assert load_data(settings(tree)).fingerprint == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_name_the_file(tree, write, workers):
    data = load_data(settings(tree, workers=workers))
    broken = tree / "test" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(RuntimeError, match=r"image=.*test/cat/1.png"):
        list(data.eval_batches("test", batch_size=2, device="cpu"))
    write(broken, seed=0, size=(9, 8))
    with pytest.raises(RuntimeError, match=r"data.image_size=None.*test/cat/1.png has 9 x 8"):
        list(data.eval_batches("test", batch_size=2, device="cpu"))


def test_imagenet_needs_val(tree):
    with pytest.raises(ValueError, match="val is missing"):
        load_data(imagenet(tree))
