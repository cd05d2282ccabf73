"""A data set ready for training and evaluation: which image is in which batch, on which rank, and how it is normalized.

Shapes: N images of a batch, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from qexp.base.errors import UserError, choose
from qexp.base.files import hash_json
from qexp.base.progress import track
from qexp.base.types import Batch
from qexp.data.augment import Augmentation, epoch_key, epoch_order, mixed
from qexp.data.splits import Part, Split, Splits, permuted, representative

T = TypeVar("T")

SAMPLED = 200  # files of a streamed split that are looked for in another
_IMAGE_DIGITS = 12


class ImageStore(Protocol):
    """Where the pixels come from: `RamImages`, `TreeImages` or `StreamedImages`, each in a file of its own."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""

    @property
    def streamed(self) -> bool:
        """True where images are decoded batch by batch."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def file_hashes(self) -> Callable[[Part], Iterator[str]] | None:
        """Of the content of a part's files, in the order of its images; None where they are no files."""

    def resized(self, size: int | None) -> ImageStore:
        """The same images at `size` x `size` pixels; None leaves them."""

    def labels(self, part: Part) -> Tensor:
        """[N] int64."""

    def num_images(self, part: Part) -> int | None:
        """Images in the part, None where the set lacks it."""

    def once(self, question: str, answer: Callable[[], T]) -> T:
        """The answer to a question about the images, which is kept where their pixels are costly to come by."""

    def hash_content(self, digest: hashlib._Hash) -> None:
        """Feed what identifies the images and labels to `digest`."""

    def sizes(self, part: Part, rows: Tensor) -> list[int]:
        """Bytes of each image as it is held."""

    def content(self, part: Part, row: int) -> bytes:
        """The image as it is held: its pixels, or its file."""

    def channel_statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel, 0-1 scale."""

    def fetch(
        self, part: Part, rows: Tensor, batches: list[Tensor], device: torch.device, augmentation: Augmentation | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (images on the 0-255 scale, labels, index) per batch, on `device`."""


class DataBundle:
    """Images, splits and batches of one data set.

    Args:
        store: the pixels.
        splits: which rows are for what.
        mean: of each channel, 0-1 scale.
        std: of each channel, 0-1 scale.
        augment: name of what training does to its images.
    """

    def __init__(self, store: ImageStore, splits: Splits, *, mean: list[float], std: list[float], augment: str) -> None:
        self._store, self._splits, self._augment = store, splits, augment
        self.mean, self.std = tuple(mean), tuple(std)
        self.class_names, self.num_classes = store.class_names, len(store.class_names)
        self.image_shape, self.streamed = store.image_shape, store.streamed
        self.split_sizes = splits.sizes
        self._shared: dict[tuple[Split, Split], tuple[int, int]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over everything that decides which numbers a network sees, augmentation apart.

        That is the decoded uint8 images (of a streamed set: the sorted relative paths and the content of its files, and how they
        are resized), the labels, the rows of every split, mean and std.
        """
        return self._store.once(f"fingerprint {self._cut} {self.mean} {self.std}", self._fingerprint)

    @cached_property
    def _cut(self) -> str:
        """Knows the rows of every split."""
        digest = hashlib.sha256()
        self._hash_splits(digest)
        return digest.hexdigest()

    def _hash_splits(self, digest: hashlib._Hash) -> None:
        for split, rows in sorted(self._splits.rows.items()):
            digest.update(f"{split}:{self._splits.part(split)}:{len(rows)}".encode())
            digest.update(rows.numpy().tobytes())

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        self._store.hash_content(digest)
        self._hash_splits(digest)
        digest.update(repr((self.mean, self.std)).encode())
        return digest.hexdigest()[:16]

    def files(self, split: Split | str) -> str:
        """16 hex digits that know the files of a split and their order, however they become pixels."""
        hashes_of, name = self._store.file_hashes, Split(split)
        assert hashes_of is not None, "checked with the settings"
        hashes = list(hashes_of(self._splits.part(name)))
        return hash_json([hashes[row] for row in self._splits.rows[name].tolist()])

    def images(self, split: Split | str, num_images: int | None = None) -> list[str]:
        """12 hex digits that know the content of each image that `eval_batches` gives, in that order.

        Content is the file, where images are files, else the pixels; the split that holds an image has no say.

        Args:
            split: which images.
            num_images: only so many.
        """
        part, rows = self._splits.part(Split(split)), self._splits.rows[Split(split)]
        wanted = rows[representative(len(rows), num_images)].tolist()
        if self._store.file_hashes is not None:
            files = list(self._store.file_hashes(part))
            return [files[row][:_IMAGE_DIGITS] for row in wanted]
        return [hashlib.sha256(self._store.content(part, row)).hexdigest()[:_IMAGE_DIGITS] for row in wanted]

    def labels(self, split: Split | str) -> Tensor:
        """[N] int64, of the images of a split in its own order."""
        name = Split(split)
        rows = self._splits.rows[name]
        return self._store.labels(self._splits.part(name))[rows] if len(rows) else rows  # a set may lack the part

    def shared(self, split: Split | str, other: Split | str) -> tuple[int, int]:
        """How many images of `split` are in split `other` too, byte for byte, and how many were looked at.

        All are looked at, by their pixels; of a streamed set, which is not read twice, some of the split, by their files.
        Splits are cut disjoint, so these are copies that the set itself holds.
        """
        pair = Split(split), Split(other)
        if pair not in self._shared:
            count, size = self._store.once(f"shared {pair[0]} {pair[1]} {self._cut}", lambda: self._count_shared(*pair))
            self._shared[pair] = count, size
        return self._shared[pair]

    def _count_shared(self, *pair: Split) -> tuple[int, int]:
        parts = [self._splits.part(name) for name in pair]
        rows = [self._splits.rows[name] for name in pair]
        rows[0] = rows[0][representative(len(rows[0]), SAMPLED if self.streamed else None)]
        sizes = [self._store.sizes(part, chosen) if len(chosen) else [] for part, chosen in zip(parts, rows, strict=True)]
        digests: list[list[bytes]] = []
        for one, partner in ((0, 1), (1, 0)):
            possible = set(sizes[partner])  # files of other sizes are not read
            candidates = [row for row, size in zip(rows[one].tolist(), sizes[one], strict=True) if size in possible]
            looked = track(candidates, "image to look for in both splits")
            digests.append([hashlib.sha1(self._store.content(parts[one], row)).digest() for row in looked])
        others = set(digests[1])
        return sum(digest in others for digest in digests[0]), len(rows[0])

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches in an epoch; a last partial one counts."""
        return -(-self.split_sizes[Split.TRAIN] // batch_size)

    def train_batches(
        self,
        *,
        epoch: int,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        mixup: float = 0.0,
        randaugment: int | None = None,
    ) -> Iterator[Batch]:
        """One epoch of augmented batches, or the rest of it from `start_step` on.

        Global batch `step` is `permutation(seed, epoch)[step * batch_size : (step + 1) * batch_size]`, the last one kept although
        it may be smaller; each rank takes its contiguous share, which may be empty where there are more ranks than images.

        Args:
            epoch: any integer; with `seed` it decides order and augmentation.
            batch_size: images per step over all ranks.
            seed: of the training.
            device: where the batches lie; a decoded set is copied there once.
            rank: of this process.
            world_size: number of processes.
            start_step: global batches to skip.
            mixup: alpha of `qexp.data.augment.mixed`, within a rank's share; 0 mixes nothing.
            randaugment: magnitude; None is without it.
        """
        key = epoch_key(seed, epoch)
        steps = epoch_order(self.split_sizes[Split.TRAIN], key).split(batch_size)[start_step:]
        shares = [step[len(step) * rank // world_size : len(step) * (rank + 1) // world_size] for step in steps]
        augmentation = Augmentation(self._augment, key, randaugment)
        batches = self._batches(Split.TRAIN, shares, [len(step) for step in steps], device, augmentation)
        return batches if mixup == 0 else _mixed(batches, key, start_step, mixup)

    def eval_batches(
        self,
        split: Split | str,
        *,
        batch_size: int,
        device: torch.device | str,
        num_images: int | None = None,
        draw: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffled: bool = False,
        start: int = 0,
    ) -> Iterator[Batch]:
        """The images of a split without augmentation, in the split's own order.

        Batch b goes to rank b % world_size whole, so its composition does not depend on the number of ranks.

        Args:
            split: which images.
            batch_size: images per batch; `Batch.num_global` is the size of the batch.
            device: where the batches lie.
            num_images: only so many, the first of a permutation of the split, in that order; `Batch.index` remains the
                position in the split.
            draw: seed of the permutation.
            rank: of this process.
            world_size: number of processes.
            shuffled: in the order of the permutation although all are wanted.
            start: batches to skip.

        Raises:
            UserError: the split is unknown or empty.
        """
        name = Split(choose("split", str(split), [item.value for item in Split]))
        if self.split_sizes[name] == 0:
            raise UserError("split", name.value, allowed="a split that holds images", remedy=f"Set data.num_{name}=N to cut one.")
        size = self.split_sizes[name]
        order = permuted(size, draw)[:num_images] if shuffled else representative(size, num_images, draw)
        batches = order.split(batch_size)[start:][rank::world_size]
        sizes = [len(batch) for batch in batches]
        made = self._batches(name, list(batches), sizes, device, None)
        return track(made, "image", total=sum(sizes), size=lambda batch: len(batch.labels))

    def _batches(
        self,
        split: Split,
        batches: list[Tensor],
        num_global: list[int],
        device: torch.device | str,
        augmentation: Augmentation | None,
    ) -> Iterator[Batch]:
        """Normalized batches of the positions in `batches`."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())  # one copy for `cuda` and `cuda:0`
        offset = torch.tensor(self.mean, device=device).view(-1, 1, 1) * 255
        factor = 1 / (torch.tensor(self.std, device=device).view(-1, 1, 1) * 255)
        fetched = self._store.fetch(self._splits.part(split), self._splits.rows[split], batches, device, augmentation)
        for count, (images, labels, index) in zip(num_global, fetched, strict=True):
            yield Batch(images.to(torch.float32).sub_(offset).mul_(factor), labels, index, count)


def _mixed(batches: Iterator[Batch], key: int, start_step: int, alpha: float) -> Iterator[Batch]:
    """The batches with their images in pairs."""
    for step, batch in enumerate(batches, start_step):
        images, share = mixed(batch.images, key, step, alpha)
        yield batch._replace(images=images, mixed_with=batch.labels.flip(0), share=share)
