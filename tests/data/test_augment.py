"""Augmentation is a function of (seed, epoch, index), and does what its name says."""

import importlib

import pytest
import torch

from qexp.base.torchvision_compat import torchvision
from qexp.data.augment import (
    PAD,
    Augmentation,
    draw,
    epoch_key,
    epoch_order,
    resized_crop,
    resized_crop_box,
    shifted,
    uniform,
)

NAMES = ("none", "crop", "crop_flip", "resized_crop_flip")


def images(count=16, channels=3, height=9, width=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def splitmix64(state):
    """The reference generator, on Python's integers."""
    mask = (1 << 64) - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_hash_is_splitmix64():
    assert splitmix64(1234567) == 6457827717110365317  # published first output for this seed
    gamma = 0x9E3779B97F4A7C15
    for key, index, number in [(0, 1, 0), (7, 3, 5), (-5, 10**9, 2)]:
        inner = splitmix64((index * gamma + key - gamma) % 2**64)
        expected = splitmix64((inner + number * gamma - gamma) % 2**64) >> 33
        assert int(draw(key, torch.tensor([index]), number)) == expected


def test_draws_are_uniform_and_unrelated():
    index = torch.arange(20_000)
    key = epoch_key(0, 0)
    first, second = uniform(key, index, 0), uniform(key, index, 1)
    other_epoch, other_seed = uniform(epoch_key(0, 1), index, 0), uniform(epoch_key(1, 0), index, 0)
    for values in (first, second, other_epoch, other_seed):
        assert 0 <= float(values.min()) and float(values.max()) < 1
        counts = torch.histc(values, 20, 0, 1)
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 45  # chi-square, 19 degrees: p > 0.001
    for values in (second, other_epoch, other_seed, first.roll(1)):
        assert abs(float(torch.corrcoef(torch.stack([first, values]))[0, 1])) < 0.03


def test_keys_and_orders_differ():
    keys = {epoch_key(seed, epoch) for seed in (0, 1, 2, 2**62) for epoch in range(4)}
    assert len(keys) == 16
    assert torch.equal(epoch_order(50, epoch_key(3, 1)), epoch_order(50, epoch_key(3, 1)))
    assert not torch.equal(epoch_order(50, epoch_key(3, 1)), epoch_order(50, epoch_key(3, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_independent_of_batch_composition(name):
    batch, index = images(), torch.arange(16) * 7
    augmentation = Augmentation(name, epoch_key(5, 2))
    whole = augmentation.apply(batch, index)
    assert whole.shape == batch.shape
    order = torch.tensor([3, 0, 15, 7])
    torch.testing.assert_close(augmentation.apply(batch[order], index[order]), whole[order], rtol=0, atol=0)
    one_by_one = [augmentation.apply(batch[i : i + 1], index[i : i + 1]) for i in range(16)]
    torch.testing.assert_close(torch.cat(one_by_one), whole, rtol=0, atol=0)
    if name != "none":
        assert not torch.equal(Augmentation(name, epoch_key(5, 3)).apply(batch, index).float(), whole.float())
    assert augmentation.apply(batch[:0], index[:0]).shape == (0, 3, 9, 11)


def test_shift_equals_padding_and_slicing():
    batch = images(81)
    row, column = torch.arange(81) // 9, torch.arange(81) % 9
    padded = torch.nn.functional.pad(batch, (PAD,) * 4)
    for i, window in enumerate(shifted(batch, row, column)):
        assert torch.equal(window, padded[i, :, row[i] : row[i] + 9, column[i] : column[i] + 11])
    assert torch.equal(shifted(batch[40:41], row[40:41], column[40:41]), batch[40:41])  # the middle place


def test_crop_uses_every_place_and_flip_half():
    batch = images(1).expand(4000, -1, -1, -1)
    index = torch.arange(4000)
    plain = Augmentation("crop", 1).apply(batch, index)
    assert len({window.numpy().tobytes() for window in plain}) == 81
    flipped = Augmentation("crop_flip", 1).apply(batch, index)
    mirrored = (flipped != plain).flatten(1).any(1)
    assert torch.equal(flipped[mirrored], plain[mirrored].flip(-1)) and torch.equal(flipped[~mirrored], plain[~mirrored])
    assert 0.46 < float(mirrored.double().mean()) < 0.54
    next_epoch = Augmentation("crop_flip", 2).apply(batch, index)
    mirrored_next = (next_epoch != Augmentation("crop", 2).apply(batch, index)).flatten(1).any(1)
    assert 0.45 < float((mirrored == mirrored_next).double().mean()) < 0.55


def test_resized_crop_boxes():
    box = resized_crop_box(9, torch.arange(5000), 60, 80)
    top, left, height, width = box.unbind(1)
    assert int(top.min()) >= 0 and int(left.min()) >= 0 and int((top + height).max()) <= 60 and int((left + width).max()) <= 80
    area, ratio = height * width / 4800, width / height
    assert 0.07 < float(area.min()) < 0.1 and float(area.max()) > 0.9
    assert 0.7 < float(ratio.min()) and float(ratio.max()) < 1.4
    places = torch.stack([top / (61 - height), left / (81 - width)])
    assert abs(float(torch.corrcoef(places)[0, 1])) < 0.06
    assert resized_crop_box(9, torch.arange(3), 4, 400).tolist() == [[0, 197, 4, 5]] * 3  # nothing fits: the centre


def test_resized_crop_resizes_the_box():
    batch = images(4, height=8, width=8)
    whole = torch.tensor([[0, 0, 8, 8]]).expand(4, -1)
    torch.testing.assert_close(resized_crop(batch, whole), batch.float(), rtol=0, atol=1e-3)
    box = torch.tensor([[2, 1, 4, 4]]).expand(4, -1)
    inner = torch.nn.functional.interpolate(batch[:, :, 2:6, 1:5].float(), (8, 8), mode="bilinear")
    # beyond the outermost pixel centres of the box the picture goes on, where a cut one would repeat its edge
    torch.testing.assert_close(resized_crop(batch, box)[:, :, 1:-1, 1:-1], inner[:, :, 1:-1, 1:-1], rtol=0, atol=1e-3)
    already_cut = Augmentation("resized_crop_flip", 3).apply(batch, torch.arange(4), cropped=True)
    assert already_cut.dtype == torch.uint8
    assert all(torch.equal(new, old) or torch.equal(new, old.flip(-1)) for new, old in zip(already_cut, batch, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_randaugment_is_torchvisions_by_image(name, channels):
    batch, index = images(channels=channels), torch.arange(40, 56)
    augmentation = Augmentation(name, epoch_key(0, 1), randaugment=9)
    state = torch.get_rng_state()
    varied = augmentation.apply(batch, index)
    assert torch.equal(torch.get_rng_state(), state), "torch's generator is put back"
    assert varied.shape == batch.shape and varied.dtype == torch.uint8
    parts = [augmentation.apply(batch[rows], index[rows]) for rows in torch.randperm(16).split(5)]
    assert sum(int((part[:, None] == varied[None]).flatten(2).all(2).any(1).sum()) for part in parts) == 16, "by image alone"
    assert not torch.equal(varied, Augmentation(name, epoch_key(0, 2), randaugment=9).apply(batch, index))
    if name == "none":
        torchvision()
        change = importlib.import_module("torchvision.transforms.v2").RandAugment(num_ops=2, magnitude=9)
        for number, seed in enumerate(draw(epoch_key(0, 1), index, 3).tolist()):
            torch.manual_seed(seed)
            assert torch.equal(change(batch[number]), varied[number])
