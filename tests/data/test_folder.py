"""Trees of image files: order, colours, sizes, and what is wrong with them."""

import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from qexp.base.errors import UserError
from qexp.base.torchvision_compat import torchvision
from qexp.config.data import DataSettings
from qexp.config.preprocessing import Preprocessing
from qexp.data.folder import decode, scan_tree
from qexp.data.load import load_data


def settings(root, **values):
    return DataSettings(**{"name": "imagefolder", "root": str(root), **values})


def test_order_is_by_class_then_name(tree, write):
    write(tree / "test" / "cat" / "10.png", seed=1)
    scanned = scan_tree(settings(tree))
    names = [f"{path.parent.name}/{path.name}" for path in scanned.parts["test"].paths]
    assert names == ["cat/0.png", "cat/1.png", "cat/10.png", "dog/0.png", "dog/1.png"]
    assert scanned.parts["test"].labels.tolist() == [0, 0, 0, 1, 1] and scanned.class_names == ("cat", "dog")


def test_decoded_pixels_and_splits(tree):
    data = load_data(settings(tree, mean=[0.0], std=[1.0], num_calib=2, workers=3))
    assert data.split_sizes == {"train": 10, "calib": 2, "select": 0, "test": 4} and not data.streamed
    batch = next(data.eval_batches("test", batch_size=4, device="cpu"))
    files = [tree / "test" / name / f"{number}.png" for name in ("cat", "dog") for number in (0, 1)]
    expected = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    assert torch.equal((batch.images * 255).round().to(torch.uint8), expected)
    assert batch.labels.tolist() == [0, 0, 1, 1]


def test_val_serves_as_test_and_hidden_folders_do_not(tree):
    shutil.move(tree / "test", tree / "val")
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / "cat" / "notes.txt").write_text("not an image")
    assert load_data(settings(tree)).split_sizes == {"train": 12, "calib": 0, "select": 0, "test": 4}


def test_colours_become_rgb(tmp_path):
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    grey.save(tmp_path / "grey.png")
    image = decode(tmp_path / "grey.png", Preprocessing())
    assert image.shape == (3, 4, 4) and torch.equal(image[0], image[2]) and image[1].flatten().tolist() == list(range(16))
    palette = grey.convert("RGB").quantize(8)
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    Image.new("RGBA", (4, 4), (10, 20, 30, 128)).save(tmp_path / "alpha.png")
    assert decode(tmp_path / "palette.png", Preprocessing()).shape == (3, 4, 4)
    assert decode(tmp_path / "alpha.png", Preprocessing())[:, 0, 0].tolist() == [10, 20, 30]


def test_image_size_resizes_all(tree, write):
    odd = tree / "train" / "dog" / "9.png"
    write(odd, seed=9, size=(10, 6))
    with pytest.raises(UserError, match=r"data.image_size=None.*0.png has 8 x 8 pixels and .*dog/9.png has 10 x 6"):
        load_data(settings(tree))
    assert load_data(settings(tree, image_size=5)).image_shape == (3, 5, 5)


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_corrupt_image_is_named(tree, write, ending, damage):
    broken = tree / "test" / "dog" / f"broken.{ending}"
    write(broken, seed=3, size=(8, 8))
    whole = broken.read_bytes()
    broken.write_bytes({"truncated": whole[: len(whole) - 40], "empty": b"", "text": b"<html>404</html>"}[damage])
    with pytest.raises(UserError, match=rf"image=.*test/dog/broken.{ending}: .*PIL says"):
        _ = load_data(settings(tree)).fingerprint


def test_corrupt_first_image(tree):
    (tree / "train" / "cat" / "0.png").write_bytes(b"")
    for image_size in (None, 8):
        with pytest.raises(UserError, match=r"image=.*train/cat/0.png"):
            load_data(settings(tree, image_size=image_size))


def png_of_16_bits(path, values):
    """Write [H, W, 3] as a PNG of 16 bits a channel, which PIL reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_values_of_16_bits_are_scaled_to_8(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    values[0, 0], values[0, 1] = 65535, 700  # 700 of 65535 is 2.7 of 255; the high byte alone would be 2
    expected = torch.from_numpy(np.rint(values / 257).astype(np.uint8)).permute(2, 0, 1)
    assert expected[0, 0, :2].tolist() == [255, 3]
    png_of_16_bits(tmp_path / "rgb.png", values)
    (tmp_path / "rgb.ppm").write_bytes(b"P6 5 4 65535\n" + values.astype(">u2").tobytes())
    for name in ("rgb.png", "rgb.ppm"):
        assert torch.equal(decode(tmp_path / name, Preprocessing()), expected), name
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values[..., 0]).save(tmp_path / name)
        assert torch.equal(decode(tmp_path / name, Preprocessing()), expected[:1].expand(3, -1, -1)), name


def test_pixels_without_a_full_scale_are_refused(tree):
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tree / "train" / "cat" / "deep.tif")
    with pytest.raises(UserError, match=r"deep.tif.*more than 8 bits"):
        load_data(settings(tree))


def test_folders_within_a_class_are_read_as_torchvision_reads_them(tree, write):
    for seed, name in enumerate(("cat/old/a.png", "cat/old/deep/b.png", "dog/9/a.png", "dog/.hidden/c.png")):
        write(tree / "train" / name, seed=seed)
    part = scan_tree(settings(tree)).parts["train"]
    theirs = torchvision().datasets.ImageFolder(str(tree / "train")).samples
    assert list(zip(map(str, part.paths), part.labels.tolist(), strict=True)) == [
        item for item in theirs if ".hidden" not in item[0]
    ]
    assert len(part.paths) == 15


def test_missing_parts_of_a_tree(tree):
    def refused(message, root=tree, **values):
        with pytest.raises(UserError, match=message):
            load_data(settings(root, **values))

    refused("data.root=.*nowhere: allowed is an existing folder", root=tree / "nowhere")
    refused("train and .*test are missing", root=tree / "train")
    (tree / "test" / "dgo").mkdir()
    refused("test/dgo has no counterpart in .*train. Did you mean dog?")
    (tree / "test" / "dgo").rename(tree / "train" / "elk")
    refused("train/elk: allowed is a class folder that holds images")
    shutil.rmtree(tree / "train" / "elk")
    shutil.rmtree(tree / "test")
    refused("test is missing; data.num_test=N")
    assert load_data(settings(tree, num_test=3)).split_sizes["test"] == 3
    shutil.rmtree(tree / "train")
    (tree / "train").mkdir()
    refused("train: allowed is .*It has no folders", num_test=3)


def test_fingerprint_is_of_decoded_content(tree):
    before = load_data(settings(tree)).fingerprint
    picture = Image.open(tree / "train" / "cat" / "0.png")
    picture.load()
    picture.save(tree / "train" / "cat" / "0.png", compress_level=0)  # other bytes, the same pixels
    assert load_data(settings(tree)).fingerprint == before
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(tree / "train" / "cat" / "0.png")
    assert load_data(settings(tree)).fingerprint != before


@pytest.mark.parametrize("storage", ["ram", "stream"])
def test_files_are_known_however_they_are_prepared(tree, storage):
    first = load_data(settings(tree, storage=storage))
    other = load_data(settings(tree, storage=storage, image_size=4, interpolation="nearest"))
    known = first.files("test")
    assert known == other.files("test") != first.files("train") and first.fingerprint != other.fingerprint
    shutil.copy(tree / "test" / "cat" / "0.png", tree / "test" / "dog" / "1.png")
    assert load_data(settings(tree, storage=storage)).files("test") != known


def test_real_jpeg_tree(extra_data):
    """The first images of the committed JPEG copy of CIFAR-10, if there is one."""
    root = extra_data / "cifar10-jpeg"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    data = load_data(settings(root, mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616]))
    assert data.split_sizes["train"] == 50_000 and data.split_sizes["test"] == 10_000 and data.image_shape == (3, 32, 32)
    batch = next(data.eval_batches("test", batch_size=2000, device="cpu", num_images=2000))
    assert abs(float(batch.images.mean())) < 0.05 and torch.bincount(batch.labels).min() > 150


def test_a_tree_to_evaluate_on_alone(tree, tmp_path):
    """test/ and calib/ without train/, and a list of classes of which some have no images: labels are its lines."""
    (tree / "train").rename(tree / "calib")
    names = tmp_path / "classes.tsv"
    names.write_text("elk\tmoose\ndog\thound\nfox\thound\ncat\tcat\n")
    data = load_data(settings(tree, classes=str(names), mean=[], std=[]).resolved(None))
    assert data.split_sizes == {"train": 0, "calib": 12, "select": 0, "test": 4} and data.num_classes == 4
    assert data.class_names == ("moose", "hound (dog)", "hound (fox)", "cat")
    assert data.labels("test").tolist() == [3, 3, 1, 1] and data.labels("train").tolist() == []
    assert load_data(settings(tree, classes=str(names), mean=[0.5], std=[0.5], num_test=2)).labels("test").tolist() == [3, 1]
    with pytest.raises(UserError, match="data.mean=None: allowed is a list"):
        load_data(settings(tree, classes=str(names)))
    names.write_text("dog\thound\ncat\tcat\ndog\tagain\n")
    with pytest.raises(UserError, match="data.classes=.*each folder once"):
        load_data(settings(tree, classes=str(names)))
    names.write_text("dog\thound\n")
    with pytest.raises(UserError, match="test/cat has no counterpart in .*classes.tsv"):
        load_data(settings(tree, classes=str(names)))
