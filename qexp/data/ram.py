"""Images decoded once into uint8 arrays, moved to each device once and kept there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from qexp.data.augment import Augmentation
from qexp.data.splits import Part

T = TypeVar("T")

_CHUNK = 1024  # images at a time where a pass over the set needs a wider type


@dataclass(frozen=True)
class RamPart:
    """One published half of a set.

    Args:
        images: [N, C, H, W] uint8.
        labels: [N] int64, 0 to num_classes - 1.
    """

    images: Tensor
    labels: Tensor

    def resized(self, size: int | None) -> RamPart:
        """The same images at `size` x `size` pixels, bilinear with antialiasing; None leaves them."""
        if size is None or self.images.shape[-2:] == (size, size):
            return self
        chunks = self.images.split(_CHUNK)
        resized = [functional.interpolate(chunk, (size, size), mode="bilinear", antialias=True) for chunk in chunks]
        return RamPart(torch.cat(resized), self.labels)


@dataclass(frozen=True)
class RamImages:
    """A set in memory.

    Args:
        parts: its halves; without `test` where the set has none.
        class_names: names of the classes, by label.
        streamed: False, for `ImageStore`.
        file_hashes: None, for `ImageStore`: they are no files.
    """

    parts: dict[Part, RamPart]
    class_names: tuple[str, ...]
    streamed: bool = False
    file_hashes: None = None
    _copies: dict[str, dict[Part, RamPart]] = field(default_factory=dict, repr=False)

    def resized(self, size: int | None) -> RamImages:
        """The same set at `size` x `size` pixels; None leaves it."""
        return replace(self, parts={name: part.resized(size) for name, part in self.parts.items()})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = next(iter(self.parts.values())).images.shape[1:]
        return channels, height, width

    def labels(self, part: Part) -> Tensor:
        """[N] int64."""
        return self.parts[part].labels

    def num_images(self, part: Part) -> int | None:
        """Images in the part, None where the set lacks it."""
        return len(self.parts[part].labels) if part in self.parts else None

    def once(self, question: str, answer: Callable[[], T]) -> T:
        """The answer: all pixels are at hand."""
        return answer()

    def hash_content(self, digest: hashlib._Hash) -> None:
        """Feed shapes, decoded bytes and labels to `digest`."""
        for name, part in sorted(self.parts.items()):
            digest.update(f"{name}{tuple(part.images.shape)}".encode())
            digest.update(part.images.contiguous().numpy().data.cast("B"))
            digest.update(part.labels.numpy().tobytes())

    def sizes(self, part: Part, rows: Tensor) -> list[int]:
        """Bytes of each image."""
        return [self.parts[part].images[0].numel()] * len(rows)

    def content(self, part: Part, row: int) -> bytes:
        """The pixels of an image."""
        return self.parts[part].images[row].contiguous().numpy().tobytes()

    def channel_statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over `rows` of the train part, on the 0-1 scale."""
        total = square = torch.zeros(self.image_shape[0], dtype=torch.float64)
        for chunk in rows.split(_CHUNK):
            images = self.parts["train"].images[chunk].double() / 255
            total, square = total + images.sum((0, 2, 3)), square + images.square().sum((0, 2, 3))
        count = len(rows) * self.image_shape[1] * self.image_shape[2]
        mean = total / count
        std = (square / count - mean.square()).clamp(min=0).sqrt()
        return mean.tolist(), torch.where(std < 1 / 255, 1.0, std).tolist()

    def fetch(
        self, part: Part, rows: Tensor, batches: list[Tensor], device: torch.device, augmentation: Augmentation | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (images, labels, index) per batch, on `device`, augmented but not normalized.

        Args:
            part: which half of the set.
            rows: [n] int64, row in the part of each position of the split.
            batches: positions of each batch, int64.
            device: where the batches lie.
            augmentation: None for evaluation.
        """
        if not batches:
            return
        source = self._on(device)[part]
        positions = torch.cat(batches)
        sizes = [len(batch) for batch in batches]
        all_rows, all_positions = rows[positions].to(device), positions.to(device)
        for row, index in zip(all_rows.split(sizes), all_positions.split(sizes), strict=True):
            images = source.images.index_select(0, row)
            if augmentation is not None:
                images = augmentation.apply(images, index)
            yield images, source.labels.index_select(0, row), index

    def _on(self, device: torch.device) -> dict[Part, RamPart]:
        """The parts on `device`, copied at first use."""
        if str(device) not in self._copies:
            moved = {name: RamPart(part.images.to(device), part.labels.to(device)) for name, part in self.parts.items()}
            self._copies[str(device)] = moved
        return self._copies[str(device)]
