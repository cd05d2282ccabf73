"""Trees in memory: what is decoded when, and what is known of them without decoding."""

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.data import DataSettings
from qexp.data import tree_images
from qexp.data.bundle import DataBundle
from qexp.data.folder import decode, scan_tree
from qexp.data.load import load_data
from qexp.data.ram import RamImages, RamPart


def settings(root, **values):
    return DataSettings(**{"name": "imagefolder", "root": str(root), "mean": [0.5], "std": [0.25], "num_calib": 4, **values})


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, in their order; one thread decodes."""
    paths = []

    def noted(path, how):
        paths.append("/".join(path.parts[-3:]))
        return decode(path, how)

    monkeypatch.setattr(tree_images, "decode", noted)
    return paths


def whole(root):
    """The same set with all pixels in memory from the beginning."""
    data, how = load_data(settings(root)), settings(root).preprocessing
    tree = scan_tree(settings(root))
    parts = {
        name: RamPart(torch.stack([decode(path, how) for path in part.paths]), part.labels) for name, part in tree.parts.items()
    }
    return DataBundle(RamImages(parts, tree.class_names), data._splits, mean=[*data.mean], std=[*data.std], augment="none")


def test_what_names_the_set_is_what_it_would_be_with_all_pixels_in_memory(tree, write):
    write(tree / "test" / "cat" / "7.png", seed=3)
    write(tree / "train" / "dog" / "7.png", seed=3)  # a copy
    data, expected = load_data(settings(tree)), whole(tree)
    assert data.shared("test", "train") == expected.shared("test", "train") == (1, 5)
    assert data.fingerprint == expected.fingerprint
    again = load_data(settings(tree))  # from what was kept
    assert (again.shared("test", "train"), again.fingerprint) == ((1, 5), expected.fingerprint)
    measured = [load_data(settings(tree, mean=None, std=None)) for _ in range(2)]
    assert measured[0].mean == measured[1].mean and measured[0].std == measured[1].std
    assert measured[0].fingerprint == measured[1].fingerprint != expected.fingerprint


def test_images_that_nobody_asks_for_are_not_decoded(tree, decoded):
    data = load_data(settings(tree))
    assert decoded == ["train/cat/0.png"]  # which says how large all are
    batches = list(data.eval_batches("test", batch_size=2, device="cpu", num_images=2))
    assert len(decoded) == 3 and all(name.startswith("test/") for name in decoded[1:])
    assert torch.equal(batches[0].images, next(whole(tree).eval_batches("test", batch_size=2, device="cpu", num_images=2)).images)
    decoded.clear()
    list(data.eval_batches("test", batch_size=2, device="cpu"))
    list(data.eval_batches("calib", batch_size=2, device="cpu"))
    assert len(decoded) == 2 + 4, "the rest of one split, and the other"


def test_a_known_set_is_named_without_its_pixels_until_a_file_changes(tree, decoded, write):
    first = load_data(settings(tree)).fingerprint
    assert len(decoded) == 1 + 16
    decoded.clear()
    assert load_data(settings(tree)).fingerprint == first and len(decoded) == 1
    decoded.clear()
    assert load_data(settings(tree, num_calib=2)).fingerprint != first and len(decoded) == 1 + 16, "other splits"
    write(tree / "train" / "dog" / "5.png", seed=77)
    decoded.clear()
    assert load_data(settings(tree)).fingerprint != first and len(decoded) == 1 + 16


def test_a_torn_line_of_what_is_kept_is_left_out(tree, decoded):
    first = load_data(settings(tree)).fingerprint
    (kept,) = tree_images.user_cache("images", "x").parent.iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    decoded.clear()
    assert load_data(settings(tree)).fingerprint == first and len(decoded) == 1 + 16


def test_a_corrupt_file_is_named_when_it_is_decoded(tree):
    path = tree / "train" / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:45])
    data = load_data(settings(tree))
    list(data.eval_batches("test", batch_size=4, device="cpu"))
    with pytest.raises(UserError, match=r"5\.png"):
        _ = data.fingerprint
