"""Augmentation of whole batches on the device, as a function of (seed, epoch, index) and nothing else.

Every draw is a hash (splitmix64) of the epoch's key, the image's position in its split and the number of the draw, computed on
int64 tensors. Rejected: torch's generators, whose draws depend on batch composition, rank, worker and device, so that a resumed
or distributed training would see other images.

Shapes: N images, C channels, H W pixels.
"""

from __future__ import annotations

import importlib
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qexp.base.torchvision_compat import torchvision

PAD = 4  # pixels on each side, the CIFAR recipe (He et al. 2016, section 4.2)
_AREA, _LOG_RATIO = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3))  # Inception-style crops, torchvision's defaults
_TRIES = 10
_GAMMA, _MUL1, _MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FLIP, _COLUMN, _ROW, _OPERATIONS, _MIX, _BOX = 0, 1, 2, 3, 4, 8  # numbers of the draws


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64, element by element on int64. Source: Steele, Lea, Flood 2014, figure 16."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_MUL1)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_MUL2)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def epoch_key(seed: int, epoch: int) -> int:
    """64 bits (as an int64) that stand for one epoch of one training."""
    start = torch.tensor(_signed(seed * _GAMMA + _GAMMA), dtype=torch.int64)
    return int(_mix(_mix(start) + _signed(epoch * _GAMMA)))


def epoch_order(num_images: int, key: int) -> Tensor:
    """The order [num_images] int64 in which an epoch visits a split."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(key))


def draw(key: int, index: Tensor, number: int) -> Tensor:
    """Draw `number` of each image, uniform integers in [0, 2^31).

    Args:
        key: of the epoch.
        index: [N] int64 on any device.
        number: which draw.

    >>> key = epoch_key(seed=0, epoch=0)
    >>> draw(key, torch.tensor([5, 6]), 1).tolist() == [int(draw(key, torch.tensor(index), 1)) for index in (5, 6)]
    True
    """
    return (_mix(_mix(index * _signed(_GAMMA) + key) + _signed(number * _GAMMA)) >> 33) & ((1 << 31) - 1)


def uniform(key: int, index: Tensor, number: int) -> Tensor:
    """`draw` on [0, 1), float64."""
    return draw(key, index, number).double() / (1 << 31)


@dataclass(frozen=True)
class Augmentation:
    """What training does to the images of one epoch.

    Args:
        name: `none`; `crop`: pad 4 pixels of raw value 0 (before normalization, as the CIFAR recipe does) and crop at random;
            `crop_flip`: the same, then mirror every second image; `resized_crop_flip`: a random box of 8 to 100 % of the area,
            resized to the image, then mirrored likewise.
        key: of the epoch.
        randaugment: magnitude of RandAugment between the crop and the mirroring; None is without it.
    """

    name: str
    key: int
    randaugment: int | None = None

    @property
    def in_worker(self) -> bool:
        """True where all but the mirroring is done image by image, where a streamed set is decoded; a shift comes first else."""
        return self.name in ("none", "resized_crop_flip")

    def apply(self, images: Tensor, index: Tensor, *, cropped: bool = False) -> Tensor:
        """Augment a batch.

        Args:
            images: [N, C, H, W] uint8.
            index: [N] int64, same device.
            cropped: what can be done in a DataLoader's worker (`in_worker`) has been.

        Returns: same shape; float32 on the 0-255 scale after a resized crop here without RandAugment behind it, else uint8.
        """
        if len(images) == 0:
            return images
        done = cropped and self.in_worker
        if self.name in ("crop", "crop_flip"):
            images = shifted(images, draw(self.key, index, _ROW), draw(self.key, index, _COLUMN))
        elif self.name == "resized_crop_flip" and not done:
            images = resized_crop(images, resized_crop_box(self.key, index, images.shape[-2], images.shape[-1]))
        if not done:
            images = self._varied(images, index)
        if self.name.endswith("flip"):
            mirror = (draw(self.key, index, _FLIP) & 1).bool()
            images = torch.where(mirror.view(-1, 1, 1, 1), images.flip(-1), images)
        return images

    def varied(self, image: Tensor, index: int) -> Tensor:
        """RandAugment of one image [C, H, W], where it is on."""
        return self._varied(image[None], torch.tensor([index]))[0]

    def _varied(self, images: Tensor, index: Tensor) -> Tensor:
        if self.randaugment is None:
            return images
        return rand_augmented(images, draw(self.key, index, _OPERATIONS), self.randaugment)


def shifted(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Pad `PAD` zeros on each side and cut the window at (row, column), each [N], taken modulo the 2 PAD + 1 positions."""
    height, width = images.shape[-2:]
    padded = functional.pad(images, (PAD, PAD, PAD, PAD))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view [N, C, 2 PAD + 1, 2 PAD + 1, H, W]
    positions = 2 * PAD + 1
    return windows[torch.arange(len(images), device=images.device), :, row % positions, column % positions]


def rand_augmented(images: Tensor, seeds: Tensor, magnitude: int) -> Tensor:
    """RandAugment: two operations drawn from torchvision's fourteen for each image, uint8.

    torchvision draws from torch's generator on the CPU, which is seeded for each image and put back.

    Args:
        images: [N, C, H, W] with 1 or 3 channels, uint8, or float on the 0-255 scale, which is rounded.
        seeds: [N] int64.
        magnitude: 0 to 30.

    Source: Cubuk et al. 2020 (arXiv:1909.13719), in the form of `torchvision.transforms.v2.RandAugment`.
    """
    change = importlib.import_module(f"{torchvision().__name__}.transforms.v2").RandAugment(num_ops=2, magnitude=magnitude)
    if images.is_floating_point():
        images = images.round().clamp(0, 255).to(torch.uint8)
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed)


def mixed(images: Tensor, key: int, step: int, alpha: float) -> tuple[Tensor, float]:
    """Mixup: l x_i + (1 - l) x_(N - 1 - i), and l, one draw of Beta(alpha, alpha) for the step.

    Args:
        images: [N, C, H, W] float32, which are overwritten.
        key: of the epoch.
        step: of the epoch; all ranks draw the same l.
        alpha: more than 0.

    Source: Zhang et al. 2018, mixup (arXiv:1710.09412), section 2; pairs by reversal as in timm.
    """
    share = random.Random(int(draw(key, torch.tensor([step]), _MIX))).betavariate(alpha, alpha)
    return images.lerp_(images.flip(0), 1 - share), share


def resized_crop_box(key: int, index: Tensor, height: int, width: int) -> Tensor:
    """The box that a resized crop cuts: area 8 to 100 %, aspect ratio 3/4 to 4/3 (log-uniform), whole pixels.

    Args:
        key: of the epoch.
        index: [N] int64.
        height: of the images, pixels.
        width: of the images, pixels.

    Returns: [N, 4] int64 (top, left, height, width). Where none of ten drawn boxes fits, the largest central one of an allowed
    ratio.

    Source: Szegedy et al. 2015, section 6, in the form of torchvision's `RandomResizedCrop`.
    """
    draws = torch.stack([uniform(key, index, _BOX + number) for number in range(2 * _TRIES + 2)], dim=1)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[:, :_TRIES])
    ratio = torch.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * draws[:, _TRIES : 2 * _TRIES])
    box_width, box_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (box_width >= 1) & (box_width <= width) & (box_height >= 1) & (box_height <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    box_height, box_width = box_height.gather(1, first)[:, 0], box_width.gather(1, first)[:, 0]
    any_fits = fits.any(dim=1)
    most_width = max(min(width, round(height * math.exp(_LOG_RATIO[1]))), 1)
    most_height = max(min(height, round(width / math.exp(_LOG_RATIO[0]))), 1)
    top = torch.where(any_fits, (draws[:, -2] * (height - box_height + 1)).floor(), (height - most_height) // 2)
    left = torch.where(any_fits, (draws[:, -1] * (width - box_width + 1)).floor(), (width - most_width) // 2)
    box_height = torch.where(any_fits, box_height, most_height)
    box_width = torch.where(any_fits, box_width, most_width)
    return torch.stack([top, left, box_height, box_width], dim=1).long()


def resized_crop(images: Tensor, box: Tensor) -> Tensor:
    """Cut `box` [N, 4] from each image and enlarge it bilinearly to the images' size; float32."""
    height, width = images.shape[-2:]
    top, left, box_height, box_width = box.float()[:, :, None].unbind(1)
    rows = top + (torch.arange(height, device=images.device) + 0.5) * box_height / height  # [N, H], pixel edges at integers
    columns = left + (torch.arange(width, device=images.device) + 0.5) * box_width / width
    x, y = 2 * columns / width - 1, 2 * rows / height - 1
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
