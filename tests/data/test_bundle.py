"""Which image is in which batch, on which rank; and the hash that names a set."""

import hashlib

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.data import DataSettings
from qexp.data.augment import epoch_key, mixed
from qexp.data.bundle import DataBundle
from qexp.data.load import load_data
from qexp.data.ram import RamImages, RamPart
from qexp.data.splits import cut_splits


def bundle(*, augment="none", mean=(0.5,), std=(0.25,), images=None, num_test_images=13, num_classes=3, **values):
    """47 training images whose pixels spell their row; 13 test images of value 200 + row, their labels mixed."""
    if images is None:
        images = torch.arange(47, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    test = (torch.arange(num_test_images, dtype=torch.uint8) + 200).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    parts = {
        "train": RamPart(images, torch.arange(47) % num_classes),
        "test": RamPart(test, (torch.arange(num_test_images) * 5) % 3),
    }
    store = RamImages(parts, tuple("abcd"))
    settings = DataSettings(name="digits", **values)
    splits = cut_splits({part: store.labels(part) for part in store.parts}, settings)
    return DataBundle(store, splits, mean=list(mean), std=list(std), augment=augment)


def train(data, **values):
    return list(data.train_batches(**{"epoch": 1, "batch_size": 10, "seed": 0, "device": "cpu", **values}))


def test_train_batches_visit_every_image_once():
    data = bundle(num_calib=5)
    batches = train(data)
    assert [len(batch.images) for batch in batches] == [10, 10, 10, 10, 2] and data.steps_per_epoch(10) == 5
    assert [batch.num_global for batch in batches] == [10, 10, 10, 10, 2]
    assert sorted(torch.cat([batch.positions for batch in batches]).tolist()) == list(range(42))
    for batch in batches:
        assert batch.images.dtype == torch.float32 and batch.labels.dtype == batch.positions.dtype == torch.int64
        pixel = (batch.images[:, 0, 0, 0] * 0.25 + 0.5) * 255
        assert torch.equal(pixel.round().long() % 3, batch.labels)  # labels belong to their images


def test_order_depends_on_seed_and_epoch_only():
    data = bundle()
    first = torch.cat([batch.positions for batch in train(data)])
    assert torch.equal(first, torch.cat([batch.positions for batch in train(data, batch_size=7)]))
    assert not torch.equal(first, torch.cat([batch.positions for batch in train(data, epoch=2)]))
    assert not torch.equal(first, torch.cat([batch.positions for batch in train(data, seed=1)]))


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop_flip"])
@pytest.mark.parametrize("world_size", [2, 3, 13])
def test_ranks_share_the_global_batch(augment, world_size):
    data = bundle(augment=augment)
    alone = train(data)
    ranks = [train(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert {part.num_global for part in parts} == {len(batch.images)}
        sizes = [len(part.images) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        for field in ("images", "labels", "positions"):
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))


def test_resume_in_the_middle_of_an_epoch():
    data = bundle(augment="crop_flip")
    for whole, resumed in zip(train(data)[3:], train(data, start_step=3), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole[:3], resumed[:3], strict=True))
    assert train(data, start_step=5) == []


def test_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    train(bundle(augment="crop_flip"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 3])
def test_mixup_pairs_the_images_of_a_step(world_size):
    data = bundle()
    shares = []
    for rank in range(world_size):
        share = {"rank": rank, "world_size": world_size}
        for step, (one, plain) in enumerate(zip(train(data, mixup=0.4, **share), train(data, **share), strict=True)):
            expected = one.share * plain.images + (1 - one.share) * plain.images.flip(0)
            assert torch.allclose(one.images, expected, atol=1e-5) and torch.equal(one.labels, plain.labels)
            assert torch.equal(one.mixed_with, plain.labels.flip(0)) and torch.equal(one.positions, plain.positions)
            shares.append((step, one.share))
    assert len(set(shares)) == 5 and all(0 <= share <= 1 for _, share in shares), "one draw a step, the same on all ranks"
    rest = train(data, mixup=0.4, start_step=3)
    assert [one.share for one in rest] == [share for _, share in sorted(set(shares))[3:]]
    assert [one.share for one in train(data, mixup=0.4, epoch=2)] != [share for _, share in sorted(set(shares))]


def test_shares_of_mixup_are_beta():
    draws = torch.tensor([mixed(torch.zeros(0, 1, 1, 1), epoch_key(0, 1), step, 0.2)[1] for step in range(2000)])
    assert abs(float(draws.mean()) - 0.5) < 0.03 and abs(float(draws.var()) - 0.25 / 1.4) < 0.01


def test_normalization():
    data = bundle(mean=[0.1], std=[0.2])
    batch = next(data.eval_batches("test", batch_size=13, device="cpu"))
    expected = (torch.arange(13) + 200) / 255
    torch.testing.assert_close(batch.images[:, 0, 2, 3], (expected - 0.1) / 0.2, rtol=1e-5, atol=1e-5)
    again = next(data.eval_batches("test", batch_size=13, device="cpu"))
    assert torch.equal(batch.images, again.images)  # the cached bytes were not touched


def test_eval_batches_do_not_depend_on_world_size():
    data = bundle()
    alone = list(data.eval_batches("test", batch_size=4, device="cpu"))
    assert torch.cat([batch.positions for batch in alone]).tolist() == list(range(13))
    for world_size in (2, 5):
        ranks = [
            list(data.eval_batches("test", batch_size=4, device="cpu", rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        for number, batch in enumerate(alone):
            twin = ranks[number % world_size][number // world_size]
            assert torch.equal(batch.images, twin.images) and torch.equal(batch.positions, twin.positions)
        assert sum(len(rank) for rank in ranks) == len(alone)


def test_eval_subset_is_the_fixed_permutation():
    data = bundle()
    batches = list(data.eval_batches("test", batch_size=4, device="cpu", num_images=6))
    expected = torch.randperm(13, generator=torch.Generator().manual_seed(0))[:6]
    index = torch.cat([batch.positions for batch in batches])
    assert torch.equal(index, expected)
    pixel = torch.cat([batch.images[:, 0, 0, 0] for batch in batches]) * 0.25 + 0.5
    assert torch.equal((pixel * 255).round().long(), expected + 200)
    assert len(list(data.eval_batches("test", batch_size=4, device="cpu", num_images=99))) == 4


def test_eval_never_augments():
    data = bundle(augment="crop_flip")
    assert torch.equal(
        next(data.eval_batches("train", batch_size=47, device="cpu")).images,
        next(bundle().eval_batches("train", batch_size=47, device="cpu")).images,
    )


def test_empty_and_unknown_splits():
    data = bundle()
    with pytest.raises(UserError, match=r"split=calib.*data.num_calib=N"):
        data.eval_batches("calib", batch_size=4, device="cpu")
    with pytest.raises(UserError, match=r"split=tset.*Did you mean test"):
        data.eval_batches("tset", batch_size=4, device="cpu")


def test_fingerprint_covers_content_labels_splits_and_normalization():
    base = bundle().fingerprint
    assert len(base) == 16 and base == bundle().fingerprint == bundle(augment="crop").fingerprint
    changed = torch.arange(47, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    changed[46, 0, 3, 3] += 1
    others = [
        bundle(images=changed),
        bundle(num_test_images=12),
        bundle(num_classes=4),
        bundle(split_seed=1),
        bundle(num_calib=1),
        bundle(num_select=1),
        bundle(num_train=46),
        bundle(mean=[0.4]),
        bundle(std=[0.4]),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == len(others) + 1


def test_content_covers_labels():
    images = torch.zeros((2, 1, 3, 3), dtype=torch.uint8)
    digests = [hashlib.sha256(), hashlib.sha256()]
    for digest, labels in zip(digests, ([0, 1], [1, 0]), strict=True):
        RamImages({"train": RamPart(images, torch.tensor(labels))}, ("a", "b")).hash_content(digest)
    assert digests[0].digest() != digests[1].digest()


def test_mean_and_std_are_measured_on_the_train_split():
    data = load_data(DataSettings(name="digits", num_test=300, num_select=100))
    pixels = torch.cat([batch.images for batch in data.eval_batches("train", batch_size=500, device="cpu")])
    assert abs(float(pixels.mean())) < 1e-4 and abs(float(pixels.std(correction=0)) - 1) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop_flip"])
def test_the_device_does_not_matter(augment):
    data = bundle(augment=augment)
    for here, there in zip(train(data), train(data, device="cuda"), strict=True):
        assert there.images.is_cuda and there.labels.is_cuda and there.positions.is_cuda
        assert torch.equal(here.labels, there.labels.cpu()) and torch.equal(here.positions, there.positions.cpu())
        torch.testing.assert_close(here.images, there.images.cpu(), rtol=1e-4, atol=1e-4)


def test_shuffled_images_are_all_of_them_in_the_order_of_a_draw():
    data = load_data(DataSettings(name="digits", num_test=300))

    def seen(**options):
        batches = data.eval_batches("test", batch_size=70, device="cpu", shuffled=True, **options)
        return [batch.positions.tolist() for batch in batches]

    whole = seen()
    assert (
        sorted(sum(whole, [])) == list(range(300)) and whole[0] != sorted(whole[0]) and list(map(len, whole)) == [70] * 4 + [20]
    )
    assert seen(start=3) == whole[3:]
    assert sum(seen(num_images=100), []) == sum(whole, [])[:100]
    (fewer,) = data.eval_batches("test", batch_size=100, device="cpu", num_images=100)
    assert fewer.positions.tolist() == sum(whole, [])[:100]
    assert seen(draw=1) != whole


def test_images_that_two_splits_share_are_counted():
    assert bundle(num_calib=5).shared("calib", "test") == (0, 5)
    twins = torch.arange(47, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    twins[::2] = 203  # as the fourth test image
    data = bundle(num_calib=20, images=twins)
    calibrated = torch.cat([batch.images for batch in data.eval_batches("calib", batch_size=20, device="cpu")])
    copies = int((((calibrated[:, 0, 0, 0] * 0.25 + 0.5) * 255).round() == 203).sum())
    assert 5 < copies < 15 and data.shared("calib", "test") == (copies, 20)
    assert data.shared("test", "calib") == (1, data.split_sizes["test"])
