"""A tree of image files in memory, of which each file is decoded when its pixels are first asked for.

What names the set is made of the pixels of all its images, and so is the count of those that two splits share: both are computed
once, and kept in the user's cache (`$XDG_CACHE_HOME/qexp`, `~/.cache/qexp`) under the content of the files and the versions of
what decodes them, so that the next evaluation of 500 images decodes 500. Rejected: knowing the set by its files, which would
give stored trainings other names; keeping the pixels themselves, up to 2 GiB for each way to prepare them.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import PIL
import torch
from torch import Tensor

from qexp.base.console import print_main
from qexp.base.files import hash_json
from qexp.base.progress import track
from qexp.base.torchvision_compat import torchvision
from qexp.config.data import DataSettings
from qexp.data.augment import Augmentation
from qexp.data.file_hashes import append_lines, user_cache
from qexp.data.folder import DECODE_ERRORS, Tree, corrupt, decode, different_sizes
from qexp.data.ram import RamImages, RamPart
from qexp.data.splits import Part

T = TypeVar("T")

_DECODING = 1  # version of how files become pixels here
_CHUNK = 256  # files per task of the thread pool
_WORTH_A_LINE = 10_000  # files; decoding so many takes over two seconds


class TreeImages:
    """A tree in memory, decoded as far as it was asked for.

    Args:
        tree: the files.
        settings: of the set: how files become pixels, and in how many threads.

    Raises:
        UserError: the first file is corrupt; it says how large all are.
    """

    streamed = False

    def __init__(self, tree: Tree, settings: DataSettings) -> None:
        self._tree, self._how, self._workers = tree, settings.preprocessing, max(1, settings.workers)
        try:
            shape = decode(tree.first, self._how).shape
        except DECODE_ERRORS as error:
            raise corrupt(tree.first, error) from error
        # Memory that no pixel was written to is not taken.
        parts = {
            name: RamPart(torch.empty((len(part.paths), *shape), dtype=torch.uint8), part.labels)
            for name, part in tree.parts.items()
        }
        self._ram = RamImages(parts, tree.class_names)
        self._is_decoded = {name: torch.zeros(len(part.paths), dtype=torch.bool) for name, part in tree.parts.items()}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self._ram.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._ram.image_shape

    def file_hashes(self, part: Part) -> Iterator[str]:
        """Of the content of a part's files, in the order of its images."""
        return self._tree.file_hashes(part, self._workers)

    def resized(self, size: int | None) -> TreeImages:
        """Itself: files are resized as they are decoded."""
        return self

    def labels(self, part: Part) -> Tensor:
        """[N] int64."""
        return self._ram.labels(part)

    def num_images(self, part: Part) -> int | None:
        """Images in the part, None where the set lacks it."""
        return self._ram.num_images(part)

    def hash_content(self, digest: hashlib._Hash) -> None:
        """Feed shapes, decoded bytes and labels to `digest`."""
        count = sum(len(flags) for flags in self._is_decoded.values())
        if count >= _WORTH_A_LINE:
            print_main(f"data: decoding {count} images below {self._tree.root} once, to know them by their pixels")
        self._decode_all()
        self._ram.hash_content(digest)

    def sizes(self, part: Part, rows: Tensor) -> list[int]:
        """Bytes of each image; all are decoded now, as who asks for sizes asks for content next."""
        self._decode(part, rows)
        return self._ram.sizes(part, rows)

    def content(self, part: Part, row: int) -> bytes:
        """The pixels of an image."""
        self._decode(part, torch.tensor([row]))
        return self._ram.content(part, row)

    def channel_statistics(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over `rows` of the train part, on the 0-1 scale."""
        self._decode("train", rows)
        return self._ram.channel_statistics(rows)

    def fetch(
        self, part: Part, rows: Tensor, batches: list[Tensor], device: torch.device, augmentation: Augmentation | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (images, labels, index) per batch, on `device`, augmented but not normalized; see `RamImages.fetch`."""
        if augmentation is not None or all(bool(flags.all()) for flags in self._is_decoded.values()):
            self._decode_all()
            yield from self._ram.fetch(part, rows, batches, device, augmentation)
            return
        self._decode(part, rows[torch.cat(batches)] if batches else rows[:0])
        here = torch.device("cpu")  # only what is whole is kept on another device
        for batch in self._ram.fetch(part, rows, batches, here, None):
            images, labels, index = (tensor.to(device) for tensor in batch)
            yield images, labels, index

    def once(self, question: str, answer: Callable[[], T]) -> T:
        """What was answered before about these very images, on this machine; else the answer, which is kept.

        Args:
            question: names what is asked, all that the answer hangs on beside the images included.
            answer: computes it; JSON values.
        """
        if self._answers is None:
            return answer()
        known = _read(self._answers)
        if question not in known:
            known[question] = answer()
            append_lines(self._answers, [json.dumps([question, known[question]])])
        return cast(T, known[question])

    @cached_property
    def _answers(self) -> Path | None:
        """The file of what is known of these images; None for a user without a home."""
        versions = [str(library.__version__) for library in (PIL, torch, torchvision(), np)]
        how = self._how
        way = [list(self.image_shape), how.image_size, how.resize, how.crop, how.interpolation, how.antialias]
        files = {name: [list(self.file_hashes(name)), self.labels(name).tolist()] for name in self._tree.parts}
        return user_cache("images", f"{hash_json([_DECODING, way, files, versions, platform.node(), platform.machine()])}.jsonl")

    def _decode_all(self) -> None:
        for part, flags in self._is_decoded.items():
            self._decode(part, torch.arange(len(flags)))

    def _decode(self, part: Part, rows: Tensor) -> None:
        """Decode those of some files that are not decoded yet, in threads.

        Raises:
            UserError: a file is corrupt, or of another size than the first.
        """
        missing = rows[~self._is_decoded[part][rows]].unique().tolist()
        if not missing:
            return
        images, paths = self._ram.parts[part].images, self._tree.parts[part].paths

        def fill(start: int) -> None:
            for row in missing[start : start + _CHUNK]:
                images[row] = self._decode_alike(paths[row])

        with ThreadPoolExecutor(self._workers) as pool:
            try:
                chunks = pool.map(fill, range(0, len(missing), _CHUNK))
                for _ in track(chunks, "image to decode", total=len(missing), size=lambda _: _CHUNK):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._is_decoded[part][missing] = True

    def _decode_alike(self, path: Path) -> Tensor:
        """Decode one file and hold it to the size of the first."""
        try:
            image = decode(path, self._how)
        except DECODE_ERRORS as error:
            raise corrupt(path, error) from error
        if image.shape != self.image_shape:
            raise different_sizes(path, image.shape, self._tree.first, self.image_shape)
        return image


def _read(path: Path) -> dict[str, object]:
    """Question -> answer; lines that a process did not finish are left out."""
    known: dict[str, object] = {}
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                question, answer = json.loads(line)
                known[question] = answer
    return known
