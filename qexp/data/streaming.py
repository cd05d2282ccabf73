"""Sets too large for memory: decoded by DataLoader workers, with torchvision's transforms, batch by batch.

Workers resize and cut; padding, mirroring and normalization are done on the device, by the code that serves decoded sets.
Augmentation is a function of (seed, epoch, index) here too, so the number of workers changes no pixel.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qexp.config.data import DataSettings
from qexp.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qexp.data.augment import Augmentation, resized_crop_box
from qexp.data.folder import DECODE_ERRORS, FilePart, Tree, corrupt, decode, different_sizes, open_rgb, scan_tree
from qexp.data.preprocess import transforms
from qexp.data.splits import Part
from qexp.data.tree_images import TreeImages

T = TypeVar("T")

_RAM_LIMIT_BYTES = 2 << 30  # a decoded tree above this is streamed where data.storage=auto
_IDENTITY = 2  # of a streamed set's fingerprint; 1 knew files by their sizes


def load_imagefolder(settings: DataSettings) -> TreeImages | StreamedImages:
    """Any tree `train/<class>/*`, `test/<class>/*` (or `val`), decoded into memory unless it exceeds 2 GiB."""
    tree, how = scan_tree(settings), settings.preprocessing
    size = _first_size(tree, how.image_size)
    num_bytes = 3 * math.prod(size) * sum(len(part.paths) for part in tree.parts.values())
    if settings.storage == "stream" or (settings.storage == "auto" and num_bytes > _RAM_LIMIT_BYTES):
        return StreamedImages(tree, (3, *size), how, workers=settings.workers)
    return TreeImages(tree, settings)


def load_imagenet(settings: DataSettings) -> StreamedImages:
    """`train/<class>/*`, `val/<class>/*`, always streamed: Resize(256) and CenterCrop(224), RandomResizedCrop(224) in training.

    Another `data.image_size` scales both numbers. Source: Goyal et al. 2017, section 4, and torchvision's references.
    """
    how = settings.preprocessing
    assert how.image_size is not None, "its row has one"
    tree = scan_tree(settings, test_names=("val",))
    return StreamedImages(tree, (3, how.image_size, how.image_size), how, workers=settings.workers)


def _first_size(tree: Tree, size: int | None) -> tuple[int, int]:
    """(H, W) to which all images come, judged by the header of the first."""
    if size is not None:
        return size, size
    first = tree.first
    try:
        with Image.open(first) as image:
            return image.height, image.width
    except DECODE_ERRORS as error:
        raise corrupt(first, error) from error


@dataclass(frozen=True)
class FileImages(Dataset[tuple[Tensor, int, int]]):
    """One part of a tree as a DataLoader sees it: (row, index) -> (image [3, H, W] uint8, label, index).

    Args:
        part: the files and their labels.
        shape: (3, H, W) that every image has in the end.
        how: resize and crop of evaluation.
        augmentation: of training; its resized crop is done here, and RandAugment unless a shift comes before it.
    """

    part: FilePart
    shape: tuple[int, int, int]
    how: Preprocessing
    augmentation: Augmentation | None

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        """Decode the file in row `item[0]`, the image at position `item[1]` of its split.

        Raises:
            RuntimeError: the file is corrupt or of another size; a worker cannot hand on a `UserError`.
        """
        row, index = item
        path = self.part.paths[row]
        try:
            image = self._decode(row, index)
        except DECODE_ERRORS as error:
            raise RuntimeError(str(corrupt(path, error))) from error
        if image.shape != self.shape:
            raise RuntimeError(str(different_sizes(path, image.shape, self.part.paths[0], self.shape)))
        return image, int(self.part.labels[row]), index

    def _decode(self, row: int, index: int) -> Tensor:
        """The image, cut and resized."""
        path = self.part.paths[row]
        if self.augmentation is None or not self.augmentation.in_worker:
            return decode(path, self.how)
        if self.augmentation.name == "none":
            return self.augmentation.varied(decode(path, self.how), index)
        image = open_rgb(path)
        box = resized_crop_box(self.augmentation.key, torch.tensor([index]), image.height, image.width)[0].tolist()
        cut = transforms().pil_to_tensor(transforms().resized_crop(image, *box, size=list(self.shape[1:]), antialias=True))
        return self.augmentation.varied(cut, index)


@dataclass(frozen=True)
class StreamedImages:
    """A tree of image files that stays on disk.

    Args:
        tree: the files.
        image_shape: (3, H, W) that every image has in the end.
        how: as in `FileImages`.
        workers: processes that decode; 0 decodes in this one.
        streamed: True, for `ImageStore`.
    """

    tree: Tree
    image_shape: tuple[int, int, int]
    how: Preprocessing
    workers: int
    streamed: bool = True

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.tree.class_names

    def resized(self, size: int | None) -> StreamedImages:
        """Itself: files are resized as they are decoded."""
        return self

    def file_hashes(self, part: Part) -> Iterator[str]:
        """Of the content of a part's files, in their order."""
        return self.tree.file_hashes(part, self.workers)

    def labels(self, part: Part) -> Tensor:
        """[N] int64."""
        return self.tree.parts[part].labels

    def num_images(self, part: Part) -> int | None:
        """Images in the part, None where the set lacks it."""
        return len(self.tree.parts[part].paths) if part in self.tree.parts else None

    def once(self, question: str, answer: Callable[[], T]) -> T:
        """The answer: it needs no pixels here."""
        return answer()

    def hash_content(self, digest: hashlib._Hash) -> None:
        """Feed the sorted relative paths, labels and content of all files, and how they are resized, to `digest`."""
        how = (self.how.image_size, self.how.resize, self.how.crop, self.how.interpolation, self.how.antialias)
        digest.update(repr(("streamed", _IDENTITY, self.image_shape, *how)).encode())
        for name, part in sorted(self.tree.parts.items()):
            contents = self.file_hashes(name)
            for path, label, content in zip(part.paths, part.labels.tolist(), contents, strict=True):
                digest.update(f"{name}|{path.relative_to(self.tree.root)}|{content}|{label}\n".encode())

    def sizes(self, part: Part, rows: Tensor) -> list[int]:
        """Bytes of each file."""
        paths = self.tree.parts[part].paths
        return [paths[row].stat().st_size for row in rows.tolist()]

    def content(self, part: Part, row: int) -> bytes:
        """A file."""
        return self.tree.parts[part].paths[row].read_bytes()

    def channel_statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """ImageNet's: measuring would decode the whole set."""
        return list(IMAGENET_MEAN), list(IMAGENET_STD)

    def fetch(
        self, part: Part, rows: Tensor, batches: list[Tensor], device: torch.device, augmentation: Augmentation | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (images, labels, index) per batch, on `device`, augmented but not normalized; see `RamImages.fetch`."""
        dataset = FileImages(self.tree.parts[part], self.image_shape, self.how, augmentation)
        items = [list(zip(rows[batch].tolist(), batch.tolist(), strict=True)) for batch in batches if len(batch)]
        loaded = iter(self._loader(dataset, items, pin_memory=device.type == "cuda"))
        for batch in batches:
            if len(batch) == 0:  # a rank without a share in the last step
                yield torch.empty((0, *self.image_shape), device=device), batch.to(device), batch.to(device)
                continue
            images, labels, index = (tensor.to(device, non_blocking=True) for tensor in next(loaded))
            yield (images if augmentation is None else augmentation.apply(images, index, cropped=True)), labels, index

    def _loader(
        self, dataset: FileImages, items: list[list[tuple[int, int]]], *, pin_memory: bool
    ) -> DataLoader[tuple[Tensor, int, int]]:
        """A DataLoader over given batches that takes nothing from the global random state."""
        transforms()  # once here, not in every worker
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # the user chose data.workers
            return DataLoader(
                dataset,
                batch_sampler=items,
                num_workers=self.workers,
                pin_memory=pin_memory,
                generator=torch.Generator().manual_seed(0),
            )
