"""Image files in a tree `root/train/<class>/**`, `root/test/<class>/**`: listing and decoding.

Files are sorted by class, then by folder within it, then by name, as torchvision's `ImageFolder` sorts them; that is the order of
the set. Every image is made RGB of 8 bits; values of 16 bits are scaled to 8, not cut.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from qexp.base.console import print_main
from qexp.base.errors import UserError, nearest
from qexp.config.data import DataSettings
from qexp.data.ram import RamImages, RamPart
from qexp.data.splits import Part

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
# what PIL raises on files that are truncated, garbled or no images
DECODE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_CHUNK = 256  # files per task of the thread pool
_WORTH_A_LINE = 10_000  # files; decoding so many takes over two seconds


@dataclass(frozen=True)
class FilePart:
    """One half of a tree.

    Args:
        paths: its files.
        labels: [N] int64, of the files.
    """

    paths: tuple[Path, ...]
    labels: Tensor


@dataclass(frozen=True)
class Tree:
    """A tree of image files.

    Args:
        root: its folder.
        parts: its halves; without `test` where the tree has no such folder.
        class_names: names of the class folders, by label.
    """

    root: Path
    parts: dict[Part, FilePart]
    class_names: tuple[str, ...]


def scan_tree(settings: DataSettings, test_names: Iterable[str] = ("test", "val")) -> Tree:
    """List the files below `data.root`.

    Args:
        settings: `root` and `num_test` are used.
        test_names: names for the folder of the test part, of which the first that exists is taken.

    Raises:
        UserError: a folder is missing or empty, or the test part has a class that the train part lacks.
    """
    assert settings.root is not None, "checked with the settings"
    root = Path(settings.root)
    if not root.is_dir():
        raise UserError("data.root", settings.root, allowed="an existing folder")
    train = root / "train"
    if not train.is_dir():
        raise UserError("data.root", settings.root, allowed="a folder with train/<class>/*", remedy=f"{train} is missing.")
    class_names = _class_folders(train)
    parts: dict[Part, FilePart] = {"train": _list_files(train, class_names, class_names)}
    test = next((root / name for name in test_names if (root / name).is_dir()), None)
    if test is None and settings.num_test is None:
        remedy = f"{root / next(iter(test_names))} is missing; data.num_test=N cuts a test split from the training images."
        raise UserError("data.root", settings.root, allowed="a folder with test/<class>/*", remedy=remedy)
    if test is not None:
        present = _class_folders(test)
        for name in present:
            if name not in class_names:
                remedy = f"{test / name} has no counterpart in {root / 'train'}. {nearest(name, class_names)}".rstrip()
                raise UserError("data.root", settings.root, allowed="a tree whose test classes are all trained", remedy=remedy)
        parts["test"] = _list_files(test, present, class_names)
    return Tree(root, parts, class_names)


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; hidden ones are none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError("data.root", folder, allowed="a folder with one folder of images per class", remedy="It has no folders.")
    return tuple(names)


def _list_files(folder: Path, present: Iterable[str], class_names: tuple[str, ...]) -> FilePart:
    """The image files of the classes `present`, sorted by class and name."""
    paths: list[Path] = []
    labels: list[int] = []
    for name in present:
        files = _images_below(folder / name)
        if not files:
            remedy = f"Known endings: {' '.join(sorted(EXTENSIONS))}."
            raise UserError("data.root", folder / name, allowed="a class folder that holds images", remedy=remedy)
        paths += files
        labels += [class_names.index(name)] * len(files)
    return FilePart(tuple(paths), torch.tensor(labels, dtype=torch.int64))


def _images_below(folder: Path) -> list[Path]:
    """The image files of a class: in its folder and in those within, sorted by folder and name; hidden folders are none."""
    files: dict[str, list[str]] = {}
    for inner, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files[inner] = sorted(name for name in names if Path(name).suffix.lower() in EXTENSIONS)
    return [Path(inner, name) for inner in sorted(files) for name in files[inner]]


def open_rgb(path: Path) -> Image.Image:
    """Decode one file to RGB of 8 bits.

    Of a grey or RGB(A) file of 16 bits a channel, v becomes round(v / 257), so that 65535 is 255.

    Raises:
        OSError, ValueError and others of `DECODE_ERRORS`: the file is corrupt, or of pixels whose full scale it does not say.
    """
    with Image.open(path) as file:
        raw = _raw_mode(file)
        if file.mode.startswith("I;16") and ";16" in raw or file.mode == "I" and file.format == "PPM":
            return Image.fromarray(_to_8_bits(np.asarray(file))).convert("RGB")
        if file.mode.startswith(("I", "F")):
            raise ValueError(f"mode {file.mode} has more than 8 bits per channel, and their full scale is unknown")
        if ";16" in raw:
            return _open_deep(path, raw)
        image = (
            file.convert("RGBA") if file.mode == "P" and "transparency" in file.info else file
        )  # PIL warns about the direct way
        return image.convert("RGB")


def _raw_mode(file: ImageFile.ImageFile) -> str:
    """How PIL calls the pixels as they lie in a file, `RGB;16B`; empty where its decoder does not say."""
    args = file.tile[0][3] if file.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _open_deep(path: Path, raw: str) -> Image.Image:
    """A file of colours of 16 bits, of which PIL keeps the high bytes; read in the other byte order, it gives the low ones."""
    layout, _, order = raw.partition(";16")
    if layout not in ("RGB", "RGBA", "RGBX") or order not in ("B", "L", "N"):
        raise ValueError(f"pixels {raw} have more than 8 bits per channel")
    swapped = f"{layout};16{'L' if order == 'B' or (order == 'N' and sys.byteorder == 'big') else 'B'}"
    with Image.open(path) as high, Image.open(path) as low:
        tiles: list[Any] = low.tile  # of PIL's own class, or plain tuples, as its version may be
        tiles[:] = [(*tile[:3], (swapped, *tile[3][1:]) if isinstance(tile[3], tuple) else swapped) for tile in tiles]
        values = np.asarray(high)[..., :3].astype(np.uint16) * 256 + np.asarray(low)[..., :3]
    return Image.fromarray(_to_8_bits(values))


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """round(v / 257) of integers from 0 to 65535, uint8."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def decode(path: Path, size: int | None) -> Tensor:
    """One file as [3, H, W] uint8, resized to `size` x `size` pixels (bilinear, antialiased, not keeping the aspect ratio)."""
    image = open_rgb(path)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def corrupt(path: Path, error: BaseException) -> UserError:
    """The error that names a file which does not decode."""
    return UserError("image", path, allowed="a readable image", remedy=f"PIL says: {error}. Replace or remove the file.")


def decode_tree(tree: Tree, settings: DataSettings) -> RamImages:
    """Decode a whole tree into memory, in `data.workers` threads.

    Raises:
        UserError: a file is corrupt, or images differ in size and there is no `data.image_size`.
    """
    count = sum(len(part.paths) for part in tree.parts.values())
    if count >= _WORTH_A_LINE:
        print_main(f"data: decoding {count} images below {tree.root}")
    first = tree.parts["train"].paths[0]
    try:
        shape = decode(first, settings.image_size).shape
    except DECODE_ERRORS as error:
        raise corrupt(first, error) from error
    parts: dict[Part, RamPart] = {}
    for name, part in tree.parts.items():
        images = torch.empty((len(part.paths), *shape), dtype=torch.uint8)

        def fill(start: int, paths: tuple[Path, ...] = part.paths, images: Tensor = images) -> None:
            for position in range(start, min(start + _CHUNK, len(paths))):
                images[position] = _decode_alike(paths[position], settings.image_size, first, shape)

        with ThreadPoolExecutor(max(1, settings.workers)) as pool:
            try:
                for _ in pool.map(fill, range(0, len(part.paths), _CHUNK)):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        parts[name] = RamPart(images, part.labels)
    return RamImages(parts, tree.class_names)


def _decode_alike(path: Path, size: int | None, first: Path, shape: torch.Size) -> Tensor:
    """Decode one file and hold it to the size of the first."""
    try:
        image = decode(path, size)
    except DECODE_ERRORS as error:
        raise corrupt(path, error) from error
    if image.shape != shape:
        raise different_sizes(path, image.shape, first, shape)
    return image


def different_sizes(path: Path, shape: Sequence[int], first: Path, first_shape: Sequence[int]) -> UserError:
    """The error that names two files of different sizes, (channels, height, width)."""
    sizes = f"{first} has {first_shape[2]} x {first_shape[1]} pixels and {path} has {shape[2]} x {shape[1]}."
    return UserError("data.image_size", None, allowed="an integer, as the images differ in size", remedy=sizes)
